"""Sums, joins and batch norm over processes: as nn.BatchNorm1d in one; two processes with unequal halves are one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from speechssl.nn.distributed import BatchNorm, all_gather, all_reduce_sum, batch_moments, rank, world_size

TESTS = Path(__file__).resolve().parents[1]
COUPLED = ["simclr", "moco", "byol", "barlow_twins"]

# Run by each of two processes on its part of a batch, and by one on the whole; saves what must agree.
SCRIPT = """
import os, sys
from dataclasses import replace
import torch, torch.distributed as dist
from cases import CASES, make, two_utterances
from speechssl.nn.distributed import BatchNorm, all_gather, all_reduce_sum

torch.set_num_threads(1)
PART = slice(*map(int, sys.argv[1].split(":")))
if "RANK" in os.environ:
    dist.init_process_group("gloo")
found = {}

x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))[PART].requires_grad_()
weights = torch.arange(15.0).view(5, 3).cos()
joined, start = all_gather(x)
loss = (joined * weights).sum() * (1 + start)  # unequal on the processes: 1 and 1 + 2 times
loss.backward()
found["joined"], found["gather gradient"], found["start"] = joined.detach(), x.grad, torch.tensor(start)
y = x.detach().sum(0).requires_grad_()
(all_reduce_sum(y).square().sum() * (1 + start)).backward()
found["sum"], found["sum gradient"] = all_reduce_sum(y.detach()), y.grad
norm = BatchNorm(3)
z = x.detach().clone().requires_grad_()
normed = norm(z)
(normed * weights[PART]).sum().backward()
found |= {"normed": normed.detach(), "norm gradient": z.grad, "mean": norm.running_mean}
found |= {"variance": norm.running_variance, "norm weight": norm.weight.grad}

for name in sys.argv[3].split(","):
    objective, batch = make(name), two_utterances(name)
    part = replace(batch, ids=batch.ids[PART], waveforms=batch.waveforms[PART], lengths=batch.lengths[PART])
    objective.before_step(0)
    output = objective(part, **CASES[name].draws(objective, part))
    output.loss.backward()
    found[f"{name} targets"] = output.num_targets
    found[f"{name} loss"] = output.loss.detach()
    found |= {f"{name} gradient {k}": p.grad for k, p in objective.named_parameters() if p.grad is not None}
    objective.after_step(1)
    found |= {f"{name} buffer {k}": v for k, v in objective.named_buffers() if k == "queue" or "running" in k}
torch.save(found, sys.argv[2])
"""


def test_alone_nothing_crosses():
    x = torch.randn(4, 3)
    assert (world_size(), rank()) == (1, 0)
    assert all_reduce_sum(x) is x
    assert all_gather(x) == (x, 0)


@given(batch=st.integers(2, 9), seed=st.integers(0, 99), offset=st.sampled_from([0.0, 10.0]))
def test_batch_norm_is_torchs(batch, seed, offset):
    torch.manual_seed(seed)
    ours, theirs = BatchNorm(3), nn.BatchNorm1d(3)
    for norm in (ours, theirs):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.5)
    weights = torch.randn(batch, 3)
    for _ in range(3):
        x = (torch.randn(batch, 3) + offset).requires_grad_()
        y = x.detach().clone().requires_grad_()
        (ours(x) * weights).sum().backward()
        (theirs(y) * weights).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_variance, theirs.running_var, rtol=1e-4, atol=1e-5)
    x, before = torch.randn(1, 3), ours.running_mean.clone()
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)
    assert ours.running_mean.equal(before)


def test_batch_norm_of_one_row_is_its_bias():
    norm = BatchNorm(3)
    x = torch.randn(1, 3, dtype=torch.bfloat16, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert y.equal(torch.zeros(1, 3))
    assert x.grad.isfinite().all()
    assert norm.running_variance.isfinite().all()


def test_moments():
    x = torch.randn(6, 3) + 1000
    mean, variance, count = batch_moments(x, couple=True)
    torch.testing.assert_close(variance, x.double().var(0, correction=0).float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mean, x.mean(0))
    assert count == 6


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What one process found on everything, and two on rows 0-1 and on the rest."""
    folder = tmp_path_factory.mktemp("math")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}", "CUDA_VISIBLE_DEVICES": ""}
    pair = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    jobs = {"one": ("0:6", {}), "first": ("0:2", pair | {"RANK": "0"}), "second": ("2:6", pair | {"RANK": "1"})}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, part, str(folder / name), ",".join(COUPLED)],
            env=common | extra,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, (part, extra) in jobs.items()
    ]
    try:
        printed = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(printed)
    return [torch.load(folder / name, weights_only=True) for name in jobs]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
class TestTwoProcesses:
    def test_join(self, results):
        one, *two = results
        assert [int(found["start"]) for found in two] == [0, 2]
        for found in two:
            assert found["joined"].equal(one["joined"])
        # The losses of both processes meet in each row's gradient: 1 + 3 times that of one process.
        torch.testing.assert_close(torch.cat([f["gather gradient"] for f in two]), 4 * one["gather gradient"])

    def test_sum(self, results):
        one, *two = results
        for found in two:
            torch.testing.assert_close(found["sum"], one["sum"])
            torch.testing.assert_close(found["sum gradient"], 4 * one["sum gradient"])

    def test_batch_norm(self, results):
        one, *two = results
        for name in ("normed", "norm gradient"):
            torch.testing.assert_close(torch.cat([found[name] for found in two]), one[name])
        for name in ("mean", "variance"):
            torch.testing.assert_close(two[0][name], one[name])
            assert two[0][name].equal(two[1][name]), "running statistics are the same everywhere"
        torch.testing.assert_close(two[0]["norm weight"] + two[1]["norm weight"], one["norm weight"])

    @pytest.mark.parametrize("name", COUPLED)
    def test_two_halves_are_the_whole(self, results, name):
        """Losses, targets and gradients add up to those of one process on all utterances; the state is the same."""
        one, *two = results
        own = [key for key in one if key.startswith(f"{name} ")]
        assert any("gradient encoder." in key for key in own)
        atol = 1e-5 * max(float(one[key].abs().max()) for key in own if " gradient " in key)
        for key in own:
            if " buffer " in key:
                assert two[0][key].equal(two[1][key]), key
                found = two[0][key]
            else:
                found = two[0][key] + two[1][key]
            torch.testing.assert_close(found, one[key], rtol=1e-3, atol=atol, msg=lambda m, key=key: f"{key}: {m}")
        assert name != "moco" or f"{name} buffer queue" in own
        assert name not in ("byol", "barlow_twins") or any("running" in key for key in own)
