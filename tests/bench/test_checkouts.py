"""Toolkits from checkouts: what is said without them, and, where they are, that they have our sizes and a loss."""

import os
from pathlib import Path

import pytest
import torch

from speechssl.bench import checkouts
from speechssl.bench.step import PEERS, Case
from speechssl.bench.table import case_of
from speechssl.build import build_objective, without_corpus
from speechssl.config import load, plain
from speechssl.errors import UserError

FOLDERS = {"fairseq": "fairseq", "cpc_audio": "CPC_audio", "minimal_hubert": "minimal_hubert/src"}


def case_for(peer: str) -> Case:
    """A short case of the configuration that the toolkit is compared on."""
    small = plain(load("wav2vec2-small", ["encoder.context.layer_drop=0"]))["encoder"]
    config = {
        "fairseq": load("wav2vec2-small", ["encoder.context.layer_drop=0"]),
        "cpc_audio": load("cpc-modified", ["objective.negatives=batch"]),
        "minimal_hubert": without_corpus(load("hubert-base-2")).override(encoder=small),
    }[peer]
    return case_of(config, (1.28, 1.28), "fp32", 1, 1)


@pytest.mark.parametrize("peer", FOLDERS)
@pytest.mark.parametrize("there", [False, True])
def test_without_a_checkout_it_is_said(monkeypatch, tmp_path, peer, there):
    monkeypatch.setenv("PEERS_DIR", str(tmp_path) if there else "")
    assert PEERS[peer] == f"speechssl.bench.checkouts:{peer}"
    with pytest.raises(UserError, match=r"^there is no \S+ under PEERS_DIR"):
        getattr(checkouts, peer)(case_for(peer), "cpu")


@pytest.mark.parametrize("peer", FOLDERS)
def test_another_configuration_is_refused(monkeypatch, peer):
    with pytest.raises(UserError, match="is compared on"):
        getattr(checkouts, peer)(case_of(load("simclr-tiny"), (1.0, 1.0), "fp32", 1, 1), "cpu")


def test_dataclasses_may_have_their_own_instances_as_defaults(monkeypatch, tmp_path):
    lines = [
        "from dataclasses import dataclass",
        "@dataclass",
        "class A: x: int = 1",
        "@dataclass",
        "class B: a: A = A()",
    ]
    (tmp_path / "old_package.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    before = checkouts.dataclasses.dataclass
    with checkouts._hashable_dataclasses("old_package"):
        module = checkouts.importlib.import_module("old_package")
    assert module.B().a.x == 1
    assert checkouts.dataclasses.dataclass is before


@pytest.mark.parametrize("peer", FOLDERS)
def test_a_toolkit_has_our_sizes(monkeypatch, peer):
    if not Path(os.environ.get("PEERS_DIR", ""), FOLDERS[peer]).is_dir() or "PEERS_DIR" not in os.environ:
        pytest.skip("no checkout under PEERS_DIR")
    case = case_for(peer)
    candidate = getattr(checkouts, peer)(case, "cpu")
    ours, theirs = (
        sum(p.numel() for p in model.parameters()) for model in (build_objective(case.resolved()), candidate.model)
    )
    assert theirs == pytest.approx(ours, rel=0.05)
    loss = candidate.run()
    assert torch.isfinite(loss)
    loss.backward()
