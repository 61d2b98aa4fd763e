"""What every objective must keep, whatever it learns."""

from dataclasses import replace

import pytest
import torch
from cases import (
    CASES,
    TOKENS,
    W2V2,
    every_fourth_is_seen,
    make,
    mask_and_next_ones,
    noisy_frames,
    two_utterances,
    units,
    utterances,
)
from tiny import lengthen, tiny_batch

from speechssl.build import build_objective, seed_everything
from speechssl.config import Config
from speechssl.objectives import OBJECTIVES, LossOutput, find_objective

EVERY = pytest.mark.parametrize("name", CASES)
MASKED = (every_fourth_is_seen, mask_and_next_ones, noisy_frames)  # draws of a mask over frames


def seeded_loss(objective, batch, *seed) -> torch.Tensor:
    seed_everything(*seed)
    return objective(batch).loss


def test_every_objective_is_here():
    assert {type(make(name)) for name in CASES} == {find_objective(name) for name in OBJECTIVES}


@EVERY
def test_forward_keeps_the_contract(name):
    objective, batch = make(name), two_utterances(name)
    for mode in (True, False):
        output = objective.train(mode)(batch)
        assert isinstance(output, LossOutput)
        assert output.loss.shape == output.num_targets.shape == ()
        assert output.loss.isfinite()
        assert output.num_targets > 0
        assert not any(metric.values.requires_grad for metric in output.metrics.values())
        assert all(metric.values.isfinite().all() for metric in output.metrics.values())
        assert objective.chance().keys() <= output.metrics.keys()
    optional = {"tokens", "speakers", "units"}
    without = dict.fromkeys(optional - objective.needs)
    objective(replace(batch, **without))  # reads nothing that it does not name in `needs`


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.loss_is_a_sum])
def test_the_loss_is_a_sum(name):
    """Twice the same utterance: twice the loss and twice the targets."""
    objective, draws = make(name).eval(), CASES[name].draws
    once, twice = utterances(name, 8000), utterances(name, 8000, 8000)
    twice = replace(
        twice,
        waveforms=once.waveforms.expand(2, -1),
        tokens=once.tokens.expand(2, -1),
        token_lengths=once.token_lengths.expand(2),
    )
    single, double = objective(once, **draws(objective, once)), objective(twice, **draws(objective, twice))
    torch.testing.assert_close(double.loss, 2 * single.loss)
    assert double.num_targets == 2 * single.num_targets


@EVERY
def test_every_trainable_parameter_gets_a_gradient(name):
    objective = make(name)
    seeded_loss(objective, two_utterances(name), 1, 0, 0).backward()
    for parameter_name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.any(), parameter_name
        else:
            assert parameter.grad is None, parameter_name


@EVERY
def test_randomness_is_a_function_of_the_seed(name):
    objective, batch = make(name, dropout=0.2), two_utterances(name)
    first, again, other = (seeded_loss(objective, batch, 1, step, 0) for step in (5, 5, 6))
    assert first.equal(again)
    assert not first.equal(other)


@EVERY
def test_micro_batches_draw_differently(name):
    objective, batch = make(name, dropout=0.2), two_utterances(name)
    assert not seeded_loss(objective, batch, 1, 5, 0).equal(seeded_loss(objective, batch, 1, 5, 1))


@EVERY
def test_padding_does_not_change_the_loss(name):
    objective, batch, draws = make(name).eval(), two_utterances(name), CASES[name].draws
    longer = lengthen(batch, 3000)
    if CASES[name].units:
        longer = replace(longer, units=units(name, longer))
    expected = objective(batch, **draws(objective, batch))
    output = objective(longer, **draws(objective, longer))
    assert output.num_targets == expected.num_targets
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)
    for key, metric in expected.metrics.items():
        torch.testing.assert_close(output.metrics[key].values, metric.values, rtol=1e-4, atol=1e-4, msg=key)


@EVERY
def test_it_learns_two_utterances_by_heart(name):
    objective, batch = make(name), two_utterances(name)
    CASES[name].prepare(objective)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(40):
        objective.before_step(step)
        seed_everything(1, step, 0)
        output = objective(batch)
        optimizer.zero_grad()
        (output.loss / output.num_targets).backward()
        optimizer.step()
        losses.append(output.loss.item() / output.num_targets.item())
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert last < 0.85 * first, f"{first:.3f} -> {last:.3f}"


@EVERY
def test_a_very_short_utterance_does_no_harm(name):
    objective = make(name)
    hop, field = objective.encoder.hop, objective.encoder.feature_encoder.receptive_field
    for frames in (objective.min_frames, 1, 0):
        short = field + (frames - 1) * hop if frames else field - 1
        batch = tiny_batch(8000, short, tokens=[TOKENS[0], [2] if frames else []], speakers=[0, 0])
        batch = replace(batch, units=units(name, batch)) if CASES[name].units else batch
        objective.zero_grad()
        output = objective(batch)
        output.loss.backward()
        assert output.loss.isfinite()
        assert all(metric.values.isfinite().all() for metric in output.metrics.values())
        assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@EVERY
def test_the_shortest_utterance_alone_has_a_loss(name):
    objective = make(name)
    samples = objective.encoder.feature_encoder.receptive_field + (objective.min_frames - 1) * objective.encoder.hop
    batch = tiny_batch(samples, tokens=[[2]], speakers=[0])
    output = objective(replace(batch, units=units(name, batch)) if CASES[name].units else batch)
    assert output.num_targets > 0
    assert output.loss.isfinite()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.draws in MASKED])
def test_an_utterance_masked_whole_keeps_a_loss(name):
    """Which may happen to one that is as short as a span; what is left to learn then is what positions tell."""
    objective, draws = make(name), CASES[name].draws
    batch = utterances(name, 8000, 4000)
    given = draws(objective, batch)
    given["mask"][1] = torch.arange(given["mask"].shape[1]) < objective.encoder.frame_lengths(4000)
    given.pop("negatives", None)
    output = objective(batch, **given)
    (output.loss / output.num_targets).backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    assert any(p.grad.any() for p in objective.encoder.context.parameters() if p.grad is not None)


@EVERY
def test_bfloat16_is_near(name):
    objective, batch = make(name), two_utterances(name)
    expected = seeded_loss(objective, batch, 1, 0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = seeded_loss(objective, batch, 1, 0, 0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)


@EVERY
def test_state_round_trip(name):
    objective, other, batch = make(name, seed=3), make(name, seed=4), two_utterances(name)
    expected = seeded_loss(objective, batch, 1, 0, 0)
    assert not seeded_loss(other, batch, 1, 0, 0).equal(expected)
    other.load_state_dict(objective.state_dict())
    assert seeded_loss(other, batch, 1, 0, 0).equal(expected)


@EVERY
def test_frozen_parameters_are_its_own(name):
    objective = make(name)
    objective.before_step(0)
    assert {id(p) for p in objective.frozen()} <= {id(p) for p in objective.parameters()}


def test_fresh_weights_are_a_function_of_the_seed():
    config = Config(
        objective={"name": "wav2vec2", **W2V2},
        encoder={
            "feature_encoder": {"name": "waveform", "dims": [8, 8], "kernels": [10, 4], "strides": [5, 4]},
            "context": {"name": "transformer", "dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16},
        },
    )
    first = build_objective(config).state_dict()
    torch.rand(5)  # whatever was drawn before
    again = build_objective(config).state_dict()
    other = build_objective(config.override(train={"seed": 2})).state_dict()
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["encoder.projection.weight"].equal(other["encoder.projection.weight"])


def test_seeds_of_neighbouring_numbers_are_unrelated():
    draws = set()
    for numbers in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (2, 0, 0), (0, 0, 0)):
        seed_everything(*numbers)
        draws.add(torch.rand(()).item())
    assert len(draws) == 6
