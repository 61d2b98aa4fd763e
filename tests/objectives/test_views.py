"""What the two-view objectives share: which views are drawn, what is measured on them, and how collapse is named."""

from dataclasses import replace

import pytest
import torch
from cases import CASES, SIX, make, two_utterances, utterances
from tiny import tiny_batch, tiny_encoder

from speechssl.errors import UserError
from speechssl.nn.augment import Augment, AugmentConfig
from speechssl.objectives.simclr import SimCLR, SimCLRConfig
from speechssl.objectives.views import View, perceptron

EVERY = pytest.mark.parametrize("name", ["simclr", "moco", "byol", "barlow_twins"])


def plain(view_seconds: float = 0.1, **numbers) -> SimCLR:
    """Views of 1600 samples, not augmented."""
    config = SimCLRConfig(view_seconds=view_seconds, hidden_dim=8, projection_dim=6, **numbers)
    return SimCLR(config, tiny_encoder("layer"))


def counting(*lengths: int):
    """Utterances whose samples are their own places, from 1."""
    batch = tiny_batch(*lengths)
    place = torch.arange(1.0, max(lengths) + 1).expand(len(lengths), -1)
    return replace(batch, waveforms=torch.where(batch.waveforms != 0, place, 0.0))


def test_views_are_pieces_of_the_same_utterance():
    first, second = plain().draw(counting(4000, 3000, 900))
    assert first.lengths.tolist() == second.lengths.tolist() == [1600, 1600, 900]
    for view in (first, second):
        assert view.waveforms.shape == (3, 1600)
        for row, length in zip(view.waveforms, view.lengths.tolist(), strict=True):
            assert row[:length].diff().eq(1).all()
            assert not row[length:].any()
        assert view.waveforms[2, 0] == 1, "shorter than a view: whole"
    assert not first.waveforms[:, 0].equal(second.waveforms[:, 0]), "each its own"


def test_nothing_is_padded():
    """The encoder's fast path, unless speed makes lengths differ."""
    assert all(view.lengths is None for view in plain().draw(counting(4000, 4000)))
    faster = plain(augment=AugmentConfig(speed=0.1))
    assert all(view.lengths is not None for view in faster.draw(counting(4000, 4000)))


def test_what_is_too_short_is_left_out():
    objective = plain()
    first, second = objective.draw(counting(4000, 84, 3000, 85))
    assert first.lengths.tolist() == second.lengths.tolist() == [1600, 1600, 85]
    assert objective(tiny_batch(4000, 84, 3000, 85)).num_targets == 3
    with pytest.raises(ValueError, match="utterances of at most 84 samples are too short for a frame"):
        objective.draw(counting(84, 20))


def test_speed_needs_longer_utterances():
    objective = plain(augment=AugmentConfig(speed=0.3))
    assert plain().min_frames == 1
    samples = objective.encoder.feature_encoder.receptive_field + (objective.min_frames - 1) * objective.encoder.hop
    for seed in range(20):
        torch.manual_seed(seed)
        assert objective(replace(tiny_batch(samples, samples), padded=False)).num_targets == 2


def test_a_view_is_at_least_a_frame():
    plain(view_seconds=85 / 16_000)
    with pytest.raises(UserError, match=r"view_seconds is 0.005, which is shorter than one frame .* set it to 0.01 or"):
        plain(view_seconds=0.005)
    with pytest.raises(ValueError, match="view_seconds must be positive"):
        SimCLRConfig(view_seconds=0.0)


@EVERY
def test_metrics_are_of_the_views(name):
    objective, batch = make(name), two_utterances(name)
    waveforms = torch.randn(6, 4000)
    same = View(waveforms, None)
    output = objective.eval()(batch, views=(same, same))
    numbers = {key: metric.result() for key, metric in output.metrics.items()}
    assert output.num_targets == 6
    assert numbers["chance"] == pytest.approx(1 / 6)
    assert numbers["accuracy"] == 1
    assert numbers["alignment"] == pytest.approx(0, abs=1e-5)
    other = objective(batch, views=(same, View(waveforms.roll(1, 0), None))).metrics
    assert other["accuracy"].result() == 0
    assert other["alignment"].result() > 0


@EVERY
def test_the_mean_is_over_valid_frames(name):
    objective = make(name).eval()
    waveforms = torch.randn(1, 4000)
    padded = torch.cat((waveforms, torch.full((1, 800), 9.0)), 1)
    pooled, projected = objective.student(View(waveforms, None))
    again, projected_again = objective.student(View(padded, torch.tensor([4000])))
    torch.testing.assert_close(pooled, again, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projected, projected_again, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, objective.encoder(waveforms).hidden.mean(1))


@EVERY
def test_frames_are_masked_in_every_branch(name):
    objective, view = make(name), View(torch.randn(6, 4000), None)
    branches = [objective.student]
    if hasattr(objective, "teacher"):
        branches.append(objective.teacher.module)
    for branch in branches:
        branch.augment = Augment(AugmentConfig(channel_mask_start_prob=0.5, channel_mask_length=4))
        assert not branch(view)[0].equal(branch(view)[0])


@EVERY
def test_collapse_is_named(name):
    objective, batch = make(name), two_utterances(name)
    numbers = {key: metric.result() for key, metric in objective(batch).metrics.items()}
    assert objective.diagnose(numbers) == ""
    assert objective.diagnose({}) == ""
    for module in (objective.encoder.context.blocks[-1].ffn_norm, objective.encoder.context.norm):
        if hasattr(module, "weight"):  # the last norm: its bias is all that is left of an utterance
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.ones_(module.bias)
    numbers = {key: metric.result() for key, metric in objective(batch).metrics.items()}
    assert "the encoder's vectors of different utterances all point the same way" in objective.diagnose(numbers)
    assert "the projections of different" in objective.diagnose({"pooled_spread": 0.5, "projected_spread": 0.001})
    lone = {key: metric.result() for key, metric in objective(utterances(name, 8000)).metrics.items()}
    assert "every micro-batch holds one utterance" in objective.diagnose(lone)


@pytest.mark.parametrize("name", ["simclr", "moco", "barlow_twins"])  # BYOL has its own, in test_byol.py
def test_a_run_driven_into_collapse_is_named(name):
    """By a learning rate a thousand times too high, within 20 updates; at a sound one it never is."""
    for rate in (1e-3, 1.0):
        objective, batch, view = make(name), two_utterances(name), View(torch.randn(6, 2000), None)
        optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=rate)
        sentences = []
        for step in range(20):
            objective.before_step(step)
            output = objective(batch, views=(view, view))
            optimizer.zero_grad()
            (output.loss / output.num_targets).backward()
            optimizer.step()
            objective.after_step(step + 1)
            sentences.append(objective.diagnose({key: metric.result() for key, metric in output.metrics.items()}))
        assert bool(sentences[-1]) == (rate == 1.0)
        assert not any(sentences) or rate == 1.0


@EVERY
def test_validation_changes_nothing(name):
    objective, batch = make(name).eval(), two_utterances(name)
    before = {key: value.clone() for key, value in objective.state_dict().items()}
    objective(batch)
    assert all(value.equal(before[key]) for key, value in objective.state_dict().items())
    assert not getattr(objective, "keys", [])


@EVERY
def test_processes_must_keep_in_step(name):
    assert make(name).couples_ranks
    assert CASES[name].lengths == SIX
    assert any("two of 0.45 s" in text for _, text in make(name).describe())


def test_perceptron():
    kinds = [type(layer).__name__ for layer in perceptron((3, 4, 5, 6), norm=True)]
    assert kinds == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear"]
    layers = perceptron((3, 4, 6), norm=False)
    assert [type(layer).__name__ for layer in layers] == ["Linear", "ReLU", "Linear"]
    assert all(layer.bias is not None for layer in layers if hasattr(layer, "bias"))
    assert layers(torch.randn(2, 3)).shape == (2, 6)
