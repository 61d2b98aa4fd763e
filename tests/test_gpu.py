"""What only a GPU has: reduced precision with a scaler, compilation, NCCL, pinned memory."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_run import ROOT, metrics, tensors, tiny_config, tiny_plain, train_here

from speechssl.build import build_objective
from speechssl.data.batching import plan_epoch
from speechssl.data.dataset import SpeechDataset, load
from speechssl.data.manifest import Manifest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PLAIN = {  # nothing random in it, so that two devices, or two kernels, can be compared
    "encoder": {"dropout": 0.0, "context": {"dropout": 0.0, "attention_dropout": 0.0, "layer_drop": 0.0}},
    "objective": {"time_mask_start_prob": 0.0, "channel_mask_start_prob": 0.0, "freeze_encoder_updates": 0},
    "optim": {"eps": 1e-3},
}


def losses(folder) -> np.ndarray:
    return np.array([line["loss"] for line in metrics(folder) if line["split"] == "train"], dtype=float)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["wav2vec2", "cpc", "ctc"])
def test_every_objective_learns_in_every_precision(corpus, tmp_path, kind, precision):
    """Twelve updates: enough for fp16's first scales, which overflow, to fall."""
    numbers = {"updates": 12, "valid_every": 12, "save_every": 6, "precision": precision}
    config = tiny_config(kind, corpus, data={"valid": str(corpus.manifest)}, train=numbers)
    path = train_here(config, tmp_path, cpu=False)
    assert np.isfinite(losses(tmp_path)).all()
    trained, start = tensors(path), build_objective(config).state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
    assert all(trained[name].dtype == tensor.dtype for name, tensor in start.items())  # float32 is what is kept
    learnt = [name for name, tensor in start.items() if tensor.dim() > 1 and not torch.equal(trained[name], tensor)]
    assert any(name.startswith("encoder.") for name in learnt)


def test_the_scaler_goes_on_where_it_was(corpus, tmp_path):
    config = tiny_config("ctc", corpus, train={"precision": "fp16", "updates": 8, "save_every": 4})
    train_here(config, tmp_path, cpu=False, stop_after=4)
    path = train_here(config, tmp_path, cpu=False)
    first, last = (
        json.loads((tmp_path / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())["scaler"]
        for step in (4, 8)
    )
    assert path.name == "step-00000008"
    assert first["scale"] >= last["scale"] > 0
    assert last["_growth_tracker"] <= 8
    # without a skipped update the tracker counts on; with one it begins again and the scale has fallen
    assert last["_growth_tracker"] == first["_growth_tracker"] + 4 or last["scale"] < first["scale"]


def test_a_gpu_computes_what_a_cpu_does(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = tiny_config("ctc", corpus, **PLAIN, train={"updates": 2})
    there, here = (train_here(config, tmp_path / str(cpu), cpu=cpu) for cpu in (False, True))
    np.testing.assert_allclose(losses(tmp_path / "False"), losses(tmp_path / "True"), rtol=1e-3)
    expected = tensors(here)
    for name, tensor in tensors(there).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_resume_on_a_gpu(corpus, tmp_path):
    """Close, not to the bit: backward passes on a GPU add up in no fixed order."""
    config = tiny_config("wav2vec2", corpus, train={"updates": 4, "save_every": 2}, optim={"eps": 1e-3})
    whole = tensors(train_here(config, tmp_path / "whole", cpu=False))
    train_here(config, tmp_path / "pieces", cpu=False, stop_after=2)
    pieces = tensors(train_here(config, tmp_path / "pieces", cpu=False))
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_compiled(corpus, tmp_path):
    plain, compiled = (
        train_here(
            tiny_config("ctc", corpus, **PLAIN, train={"updates": 2, "compile": on}), tmp_path / str(on), cpu=False
        )
        for on in (False, True)
    )
    np.testing.assert_allclose(losses(tmp_path / "True"), losses(tmp_path / "False"), rtol=1e-2)
    assert tensors(compiled).keys() == tensors(plain).keys()  # no trace of the compiler in the names


@pytest.mark.slow
def test_nccl(corpus, tmp_path):
    """One process under a launcher: a real process group, DDP around the objective, and the same weights."""
    config = tiny_plain("ctc", corpus, **PLAIN, train={"updates": 2})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    script = (
        "import json, sys; from pathlib import Path; import torch\n"
        "from speechssl.config import Config, parse; from speechssl.train import train\n"
        "train(parse(Config, json.loads(Path(sys.argv[1]).read_text()), source='test'), sys.argv[2])\n"
        "assert torch.distributed.get_backend() == 'nccl'\n"
        "torch.distributed.destroy_process_group()"
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", script, file, tmp_path / "nccl"],
        cwd=ROOT,
        env=os.environ | launched,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    train_here(tiny_config("ctc", corpus, **PLAIN, train={"updates": 2}), tmp_path / "alone", cpu=False)
    np.testing.assert_allclose(losses(tmp_path / "nccl"), losses(tmp_path / "alone"), rtol=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_wait_in_pinned_memory(corpus, workers):
    data = SpeechDataset(Manifest.read(corpus.manifest), tiny_config("cpc", corpus).data)
    requests = [(0, i) for i in plan_epoch(data.lengths, data.budget, seed=0, epoch=0, crop=True)]
    for loaded in load(data, requests, workers=workers, pin_memory=True):
        assert loaded.batch.waveforms.is_pinned()
        assert loaded.batch.lengths.is_pinned()
        assert loaded.batch.to("cuda").waveforms.is_cuda
