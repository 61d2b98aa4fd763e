"""The learning rate at its corner points, and which parameter is in which group."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import make_corpus, tiny_config

from speechssl.build import build_objective
from speechssl.config import OptimConfig
from speechssl.optim import build_optimizer, learning_rate, set_learning_rate

shares = st.floats(0, 0.5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "tri_stage"])
def test_the_rise(schedule):
    config = OptimConfig(lr=2.0, schedule=schedule, warmup=0.1, hold=0.0)
    assert learning_rate(config, 0, 1000) == pytest.approx(0.02)  # never an update at rate 0
    assert learning_rate(config, 49, 1000) == pytest.approx(1.0)
    assert learning_rate(config, 99, 1000) == pytest.approx(2.0)
    assert learning_rate(config, 100, 1000) == pytest.approx(2.0)


def test_linear():
    config = OptimConfig(lr=1.0, schedule="linear", warmup=0.2)
    assert learning_rate(config, 600, 1000) == pytest.approx(0.5)
    assert learning_rate(config, 999, 1000) == pytest.approx(1 / 800)
    assert learning_rate(config, 1000, 1000) == 0.0
    kept = OptimConfig(lr=1.0, schedule="linear", warmup=0.0, final_scale=1.0)  # constant, as the CPC preset has it
    assert [learning_rate(kept, step, 10) for step in range(11)] == [1.0] * 11


def test_cosine():
    config = OptimConfig(lr=1.0, schedule="cosine", warmup=0.0, final_scale=0.1)
    assert learning_rate(config, 0, 1000) == pytest.approx(1.0)
    assert learning_rate(config, 500, 1000) == pytest.approx(0.55)
    assert learning_rate(config, 250, 1000) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(config, 1000, 1000) == pytest.approx(0.1)


def test_tri_stage():
    config = OptimConfig(lr=1.0, schedule="tri_stage", warmup=0.1, hold=0.4, final_scale=0.05)
    assert [learning_rate(config, step, 1000) for step in (100, 300, 499, 500)] == pytest.approx([1.0] * 4)
    assert learning_rate(config, 750, 1000) == pytest.approx(math.sqrt(0.05))  # half way, in logarithms
    assert learning_rate(config, 1000, 1000) == pytest.approx(0.05)


@given(
    schedule=st.sampled_from(["linear", "cosine", "tri_stage"]),
    warmup=shares,
    hold=shares,
    final_scale=st.floats(0, 1),
    updates=st.integers(1, 300),
)
def test_no_schedule_jumps_or_leaves_its_range(schedule, warmup, hold, final_scale, updates):
    config = OptimConfig(lr=1.0, schedule=schedule, warmup=warmup, hold=hold, final_scale=final_scale)
    rates = [learning_rate(config, step, updates) for step in range(updates + 1)]
    assert all(0 <= rate <= 1 + 1e-9 for rate in rates)
    top = max(range(len(rates)), key=rates.__getitem__)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(rates[top:]))


# ------------------------------------------------------------------------------------------------------------- groups


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), (0.5,))


def test_groups(corpus):
    config = tiny_config("ctc", corpus, optim={"heads_lr_scale": 5.0, "weight_decay": 0.3})
    objective = build_objective(config)
    optimizer = build_optimizer(objective, config.optim)
    set_learning_rate(optimizer, 0.01)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in objective.named_parameters():
        group = found[id(parameter)]
        assert group["weight_decay"] == (0.3 if parameter.dim() > 1 else 0.0), name
        assert group["lr"] == pytest.approx(0.01 if name.startswith("encoder.") else 0.05), name
    heads = {name for name, _ in objective.named_parameters() if not name.startswith("encoder.")}
    assert {"mask_embedding", "head.linear.weight", "head.linear.bias"} == heads


def test_what_never_learns_is_in_no_group(corpus):
    config = tiny_config("ctc_probe", corpus)
    objective = build_objective(config)
    optimizer = build_optimizer(objective, config.optim)
    encoder = {id(p) for p in objective.encoder.parameters()}
    assert not encoder & {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_decay_shrinks_matrices_only(corpus):
    config = tiny_config("cpc", corpus, optim={"weight_decay": 0.5})
    objective = build_objective(config)
    optimizer = build_optimizer(objective, config.optim)
    set_learning_rate(optimizer, 0.1)
    before = {name: p.detach().clone() for name, p in objective.named_parameters()}
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in objective.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if parameter.dim() > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), expected, msg=name)
