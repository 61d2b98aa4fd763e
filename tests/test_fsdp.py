"""FSDP on two processes: the weights of one process, checkpoints that anybody reads, and exact resumes."""

import pytest
import torch
from safetensors.torch import load_file
from test_distributed import assert_close, assert_close_metrics, on_two_processes, parts, with_a_loud_one
from tiny_run import make_corpus, metrics, tiny_config, tiny_plain, train_here

import speechssl
from speechssl.export.hf import export_hf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]
# LayerDrop and an idle rank; a teacher and a queue; an update that is not finite, on one process alone
RUNS = ["wav2vec2", "moco", "loud"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with every run made by one process (one-*), and by two with FSDP in two pieces (fsdp-*)."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = make_corpus(folder / "train")
    valid = make_corpus(folder / "valid", (0.6, 0.8, 1.1), name="valid")
    jobs = []
    for name in RUNS:
        kind, numbers = {"loud": "cpc"}.get(name, name), parts(name, valid.manifest)
        if name == "loud":
            numbers["data"]["train"] = str(with_a_loud_one(corpus, folder / "loud"))
        train_here(tiny_config(kind, corpus, **numbers), folder / f"one-{name}")
        job = {"config": tiny_plain(kind, corpus, **numbers), "folder": f"{folder}/fsdp-{name}", "signal": False}
        jobs += [{**job, "stop_after": stop, "fsdp": True} for stop in (2, None)]
    statuses, printed = on_two_processes(jobs, folder)
    assert statuses == [0, 0], printed
    assert printed.count(" x 2 (FSDP), ") == len(jobs)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_divided_weights_are_the_same_weights(runs, name):
    """Moments too, after a resume; and validation, where three utterances fall unequally on two processes."""
    one, two = runs / f"one-{name}", runs / f"fsdp-{name}"
    assert_close(one, two)
    assert_close_metrics(metrics(one), metrics(two))


def test_what_is_saved_opens_and_exports(runs, tmp_path):
    """As a whole checkpoint: its features, here and elsewhere, are those of the run on one process."""
    waveforms = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    features, exported = [], []
    for run in ("one-wav2vec2", "fsdp-wav2vec2"):
        features.append(speechssl.load_encoder(runs / run)(waveforms).hidden)
        export_hf(runs / run, tmp_path / run)
        exported.append(load_file(tmp_path / run / "model.safetensors"))
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)
    assert exported[0].keys() == exported[1].keys()
    for key, tensor in exported[0].items():
        torch.testing.assert_close(tensor, exported[1][key], rtol=1e-5, atol=1e-6)
