"""`train.precision: auto`: what the device multiplies in, settled once per run."""

import pytest
import torch
from tiny_run import tiny_config, train_here

from speechssl import run
from speechssl.config import load, presets, read_run
from speechssl.device import native_precision


@pytest.mark.parametrize(
    ("can", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True, "avx512_bf16": False}, "fp32")],
)
def test_a_cpu_without_the_instructions_computes_in_fp32(monkeypatch, can, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    assert native_precision("cpu") == expected


def test_a_torch_that_cannot_say_computes_in_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert native_precision("cpu") == "fp32"


def test_a_run_keeps_the_precision_it_began_with(monkeypatch, corpus, tmp_path):
    """On another machine, too: half of a run in bf16 and half in fp32 is no run that anybody can repeat."""
    config = tiny_config("cpc", corpus, train={"precision": "auto", "updates": 2, "save_every": 1})
    monkeypatch.setattr(run, "native_precision", lambda device: "bf16")
    train_here(config, tmp_path / "run", stop_after=1)
    monkeypatch.setattr(run, "native_precision", lambda device: "fp32")
    assert train_here(config, tmp_path / "run").name == "step-00000002"
    assert read_run(tmp_path / "run").train.precision == "bf16"


def test_no_preset_asks_for_what_a_machine_may_not_have():
    assert {load(name).train.precision for name in presets()} <= {"auto", "fp32"}
