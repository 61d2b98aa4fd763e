"""What every objective must keep, whatever it learns."""

from dataclasses import replace

import pytest
import torch
from tiny import lengthen, tiny_batch, tiny_encoder

from speechssl.build import build_objective, seed_everything
from speechssl.config import Config
from speechssl.objectives import OBJECTIVES, LossOutput, find_objective
from speechssl.objectives.cpc import CPC, CPCConfig
from speechssl.objectives.ctc import CTC, CTCConfig
from speechssl.objectives.ctc_probe import CTCProbe, CTCProbeConfig
from speechssl.objectives.wav2vec2 import Wav2Vec2, Wav2Vec2Config

TOKENS = [[2, 3, 1, 4, 4], [5, 1, 2]]
W2V2 = {"num_codebooks": 2, "codebook_size": 6, "code_dim": 8, "final_dim": 8, "num_negatives": 6, "mask_length": 3}
LETTERS = {"vocab_size": 6, "word_boundary": 1}

MAKERS = {  # each from the dropout of its encoder and heads
    "wav2vec2": lambda dropout: Wav2Vec2(
        Wav2Vec2Config(**W2V2, quantizer_dropout=dropout), tiny_encoder("group", dropout)
    ),
    "wav2vec2-logmel": lambda dropout: Wav2Vec2(
        Wav2Vec2Config(**W2V2, feature_penalty=0.0, mask_start_prob=0.2), tiny_encoder("logmel", dropout)
    ),
    "cpc": lambda dropout: CPC(CPCConfig(num_steps=3, num_negatives=6), tiny_encoder("recurrent", dropout)),
    "cpc-modified": lambda dropout: CPC(
        CPCConfig(num_steps=2, num_negatives=6, negatives="speaker", heads="transformer", head_heads=2),
        tiny_encoder("recurrent", dropout),
    ),
    "ctc": lambda dropout: CTC(
        CTCConfig(**LETTERS, time_mask_start_prob=0.2, time_mask_length=3, channel_mask_length=4, head_dropout=dropout),
        tiny_encoder("layer", dropout),
    ),
    "ctc_probe": lambda dropout: CTCProbe(
        CTCProbeConfig(**LETTERS, dim=8, dropout=dropout), tiny_encoder("group", dropout)
    ),
}
EVERY = pytest.mark.parametrize("name", MAKERS)


def make(name, dropout=0.0, seed=3):
    torch.manual_seed(seed)
    return MAKERS[name](dropout).train()


def two_utterances():
    return tiny_batch(8000, 6000, tokens=TOKENS, speakers=[0, 0])


def seeded_loss(objective, batch, *seed) -> torch.Tensor:
    seed_everything(*seed)
    return objective(batch).loss


def test_every_objective_is_here():
    assert {type(make(name)) for name in MAKERS} == {find_objective(name) for name in OBJECTIVES}


@EVERY
def test_forward_keeps_the_contract(name):
    objective, batch = make(name), two_utterances()
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


@EVERY
def test_the_loss_is_a_sum(name):
    """Twice the same utterance: twice the loss and twice the targets."""
    objective = make(name).eval()
    once = tiny_batch(8000, tokens=TOKENS[:1], speakers=[0])
    twice = tiny_batch(8000, 8000, tokens=[TOKENS[0]] * 2, speakers=[0, 1])
    twice = replace(twice, waveforms=once.waveforms.expand(2, -1))
    if name.startswith("wav2vec2"):
        mask = torch.zeros(1, objective.encoder.frame_lengths(8000), dtype=torch.bool)
        mask[:, 3:9] = True
        negatives = (torch.arange(6)[:, None] + torch.arange(1, 6)).remainder(6)[None]  # all others
        single = objective(once, mask=mask, negatives=negatives)
        double = objective(twice, mask=mask.expand(2, -1), negatives=negatives.expand(2, -1, -1))
        torch.testing.assert_close(double.loss, 2 * single.loss)
    else:
        single, double = objective(once), objective(twice)
        tolerance = {"rtol": 0.05, "atol": 0.0} if name.startswith("cpc") else {}  # other negatives
        torch.testing.assert_close(double.loss, 2 * single.loss, **tolerance)
    assert double.num_targets == 2 * single.num_targets


@EVERY
def test_every_trainable_parameter_gets_a_gradient(name):
    objective = make(name)
    seeded_loss(objective, two_utterances(), 1, 0, 0).backward()
    for parameter_name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.any(), parameter_name
        else:
            assert parameter.grad is None, parameter_name


@EVERY
def test_randomness_is_a_function_of_the_seed(name):
    objective, batch = make(name, dropout=0.2), two_utterances()
    first, again, other = (seeded_loss(objective, batch, 1, step, 0) for step in (5, 5, 6))
    assert first.equal(again)
    assert not first.equal(other)


@EVERY
def test_micro_batches_draw_differently(name):
    objective, batch = make(name, dropout=0.2), two_utterances()
    assert not seeded_loss(objective, batch, 1, 5, 0).equal(seeded_loss(objective, batch, 1, 5, 1))


@EVERY
def test_padding_does_not_change_the_loss(name):
    objective, batch = make(name).eval(), two_utterances()
    longer = lengthen(batch, 3000)
    if name.startswith("wav2vec2"):
        frames = objective.encoder.frame_lengths(batch.lengths)
        size = objective.encoder.frame_lengths(longer.waveforms.shape[1])
        mask = objective.draw_mask(frames, size)
        counts = mask.sum(1)
        negatives = (torch.arange(int(counts.max()))[:, None] + 1) % counts[:, None, None]  # the next one
        given = {"negatives": negatives}
        expected, output = objective(batch, mask=mask[:, : frames[0]], **given), objective(longer, mask=mask, **given)
    elif name.startswith("cpc"):
        size, wide = (objective.encoder.frame_lengths(b.waveforms.shape[1]) for b in (batch, longer))
        steps = objective.config.num_steps
        frame = torch.arange(wide - steps)[:, None].expand(2, steps, -1, 6) // 2  # an earlier frame of the utterance
        offset = torch.arange(2)[:, None, None, None]
        expected = objective(batch, negatives=frame[:, :, : size - steps] + offset * size)
        output = objective(longer, negatives=frame + offset * wide)
    else:
        expected, output = objective(batch), objective(longer)
    assert output.num_targets == expected.num_targets
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)
    for key, metric in expected.metrics.items():
        torch.testing.assert_close(output.metrics[key].values, metric.values, rtol=1e-4, atol=1e-4, msg=key)


@EVERY
def test_it_learns_two_utterances_by_heart(name):
    objective, batch = make(name), two_utterances()
    if name == "ctc":
        objective.config = replace(objective.config, time_mask_start_prob=0.0, freeze_encoder_updates=0)
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
    output = objective(tiny_batch(samples, tokens=[[2]], speakers=[0]))
    assert output.num_targets > 0
    assert output.loss.isfinite()


@EVERY
def test_bfloat16_is_near(name):
    objective, batch = make(name), two_utterances()
    expected = seeded_loss(objective, batch, 1, 0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = seeded_loss(objective, batch, 1, 0, 0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)


@EVERY
def test_state_round_trip(name):
    objective, other, batch = make(name, seed=3), make(name, seed=4), two_utterances()
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
