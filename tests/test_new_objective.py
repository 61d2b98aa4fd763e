"""docs/new-objective.md: the objective outside the package is short, keeps the contract, and trains by its name."""

import importlib
import sys

import pytest
import torch
import yaml
from tiny import lengthen, tiny_batch, tiny_encoder
from tiny_run import ROOT, make_corpus, metrics, speechssl, tiny_plain

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def energy(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module("energy")
    sys.modules.pop("energy")


def test_it_is_short():
    assert len((EXAMPLES / "energy.py").read_text().splitlines()) < 100


def test_it_keeps_the_contract(energy):
    torch.manual_seed(1)
    objective = energy.Energy(energy.EnergyConfig(mask_length=3), tiny_encoder())
    batch = tiny_batch(8000, 6000)
    torch.manual_seed(2)
    output = objective(batch)
    output.loss.backward()
    assert all(p.grad is not None for p in objective.parameters())
    targets = objective.loudness(batch.waveforms, 90)
    assert targets[0, 5].item() == pytest.approx(batch.waveforms[0, 400:480].square().mean().log().item(), abs=1e-4)
    longer = objective.eval()(lengthen(batch, 2000))
    assert longer.loss.isfinite()
    assert longer.num_targets > 0


def test_it_trains_from_the_command_line(energy, capsys, monkeypatch, tmp_path):
    corpus = make_corpus(tmp_path / "sound")
    preset = tiny_plain("wav2vec2", corpus)
    preset["objective"] = {"name": "energy:Energy", "mask_length": 3}
    preset["data"].pop("train")
    file = tmp_path / "energy.yaml"
    file.write_text(yaml.safe_dump(preset))
    run = tmp_path / "run"
    status, _out, err = speechssl(
        capsys, monkeypatch, "pretrain", "--preset", file, "--train", corpus.manifest, "-o", run, "train.updates=12"
    )
    assert status == 0, err
    losses = [line["loss"] for line in metrics(run) if line["split"] == "train"]
    assert len(losses) == 12
    assert 0 < losses[-1] < losses[0]
