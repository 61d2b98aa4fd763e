"""CPC's InfoNCE against loops over (utterance, step, frame), for every head and every source of negatives."""

import math

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder

from speechssl.errors import UserError
from speechssl.objectives.cpc import CPC, CPCConfig

STEPS, N = 3, 4
SOURCES = pytest.mark.parametrize("negatives", ["utterance", "speaker", "batch"])
HEADS = pytest.mark.parametrize("heads", ["linear", "transformer"])


def model(**numbers) -> CPC:
    torch.manual_seed(3)
    config = CPCConfig(**({"num_steps": STEPS, "num_negatives": N, "head_heads": 2, "head_ffn_dim": 32} | numbers))
    objective = CPC(config, tiny_encoder("recurrent"))
    shake(objective)
    return objective


def test_transformer_heads_are_as_wide_inside_as_published():
    assert CPCConfig().head_ffn_dim == 2048
    for head in model(heads="transformer", head_ffn_dim=48).heads:
        assert (head.block.ffn_in.out_features, head.block.ffn_out.in_features) == (48, 48)


def batch_of_three(**numbers):
    return tiny_batch(3000, 2000, 1200, speakers=[4, 7, 4], **numbers)


def drawn(objective, batch):
    """The negatives that `forward` would draw, (B, K, S, N) flattened frames."""
    frames = objective.encoder.frame_lengths(batch.lengths)
    size = objective.encoder.frame_lengths(batch.waveforms.shape[1])
    future = torch.arange(size - STEPS) + torch.arange(1, STEPS + 1)[:, None]
    return objective._draw(batch, frames, size, future), frames, size


@SOURCES
@HEADS
@torch.no_grad()
def test_loss_against_loops(heads, negatives):
    objective = model(heads=heads, negatives=negatives).eval()
    batch = batch_of_three()
    chosen, frames, size = drawn(objective, batch)
    output = objective(batch, negatives=chosen)

    encoded = objective.encoder(batch.waveforms, batch.lengths)
    latents = encoded.latents.flatten(0, 1)
    channels = latents.shape[1]
    total, count, hits = 0.0, 0, 0
    for b in range(3):
        context = encoded.hidden[b, : frames[b] - STEPS]  # frames that see all their steps
        for k in range(1, STEPS + 1):
            if heads == "linear":
                predictions = context @ objective.heads[0].weight[(k - 1) * channels : k * channels].T
            else:
                predictions = objective.heads[k - 1](context[None])[0]
            for t in range(len(context)):
                candidates = torch.stack([latents[b * size + t + k], *latents[chosen[b, k - 1, t]]])
                scores = candidates @ predictions[t] / channels**0.5
                total -= float(scores.log_softmax(0)[0])
                hits += int(scores.argmax() == 0)
                count += 1
    assert output.num_targets == count == STEPS * int((frames - STEPS).sum())
    assert output.loss.item() == pytest.approx(total, rel=1e-5)
    assert output.metrics["infonce"].result() == pytest.approx(total / count, rel=1e-5)
    assert output.metrics["accuracy"].result() == pytest.approx(hits / count)


@SOURCES
def test_where_negatives_come_from(negatives):
    objective = model(negatives=negatives, num_negatives=60)
    batch = batch_of_three()
    chosen, frames, size = drawn(objective, batch)
    utterance, frame = chosen // size, chosen % size
    allowed = {
        "utterance": [{0}, {1}, {2}],
        "speaker": [{0, 2}, {1}, {0, 2}],
        "batch": [{0, 1, 2}] * 3,
    }[negatives]
    for b in range(3):
        used = slice(0, int(frames[b]) - STEPS)
        assert set(utterance[b, :, used].flatten().tolist()) == allowed[b]
        assert (frame[b, :, used] < frames[utterance[b, :, used]]).all(), "never padding"
        for k in range(STEPS):
            right = b * size + torch.arange(size - STEPS)[used] + k + 1
            assert (chosen[b, k, used] != right[:, None]).all(), "never the target itself"


@HEADS
def test_predictions_do_not_see_what_they_predict(heads):
    """A change after frame t leaves every prediction made at t as it was."""
    objective = model(heads=heads).eval()
    batch = tiny_batch(3000)
    with torch.no_grad():
        context = objective.encoder(batch.waveforms).hidden
        changed = batch.waveforms.clone()
        changed[:, 1000:] += 1.0
        later = objective.encoder(changed).hidden
        frames = objective.encoder.frame_lengths(1000)
        before, after = objective._predict(context), objective._predict(later)
    torch.testing.assert_close(before[:, :, :frames], after[:, :, :frames])
    assert not torch.allclose(before, after)


@SOURCES
def test_padding_changes_nothing(negatives):
    """Not even which frames predict: those that see all their steps, in a batch as alone."""
    objective = model(negatives=negatives).eval()
    batch = batch_of_three()
    longer = batch_of_three(size=4500)
    chosen, _, size = drawn(objective, batch)
    more, _, wide = drawn(objective, longer)
    more[:, :, : size - STEPS] = chosen // size * wide + chosen % size
    expected, output = objective(batch, negatives=chosen), objective(longer, negatives=more)
    assert output.num_targets == expected.num_targets
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)


def test_information_is_bounded_per_step():
    objective = model()
    output = objective(batch_of_three())
    bounds = [output.metrics[f"information/{k + 1}"] for k in range(STEPS)]
    infonce = output.metrics["infonce"]
    count = sum(float(bound.values[1]) for bound in bounds)
    assert count == output.num_targets
    # log(N + 1) - loss, on average over the steps
    mean = sum(float(bound.values[0]) for bound in bounds) / count
    assert mean == pytest.approx(math.log(N + 1) - infonce.result(), abs=1e-5)
    assert all(bound.result() <= math.log(N + 1) for bound in bounds)


def test_chance_is_what_equal_scores_give():
    objective = model()
    torch.nn.init.zeros_(objective.heads[0].weight)
    metrics = objective(tiny_batch(3000)).metrics
    assert objective.chance()["infonce"] == pytest.approx(metrics["infonce"].result())
    assert objective.chance()["accuracy"] == pytest.approx(1 / (N + 1))
    assert metrics["accuracy"].result() == 0, "a tie is not a hit"


def test_what_it_needs():
    assert model(negatives="speaker").needs == {"speakers"}
    assert model().needs == set()
    assert model().min_frames == STEPS + 1


def test_a_context_that_sees_the_future_is_refused():
    with pytest.raises(UserError, match=r"encoder\.context\.causal=true"):
        CPC(CPCConfig(), tiny_encoder("layer"))
    CPC(CPCConfig(), tiny_encoder("layer", causal=True))


def test_utterances_too_short():
    objective = model()
    samples = objective.encoder.feature_encoder.receptive_field + (STEPS - 1) * objective.encoder.hop
    with pytest.raises(ValueError, match="utterances of 3 frames are too short to predict 3 steps ahead"):
        objective(tiny_batch(samples))
    output = objective(tiny_batch(samples + objective.encoder.hop))  # min_frames
    assert output.num_targets == STEPS


@SOURCES
@pytest.mark.parametrize("short", [0, 85, 165])  # no frame, one, two
def test_a_short_utterance_among_others(negatives, short):
    objective = model(negatives=negatives)
    batch = tiny_batch(3000, 2000, short, speakers=[0, 1, 2])
    expected = objective.encoder.frame_lengths(batch.lengths)[:2].sum() - 2 * STEPS
    output = objective(batch)
    output.loss.backward()
    assert output.num_targets == STEPS * expected
    assert output.loss.isfinite()


@SOURCES
@torch.no_grad()
def test_hard_negatives_against_loops(negatives):
    """Of twice as many as are wanted, those whose latents resemble the target's most."""
    objective, batch = model(negatives=negatives, hard_pool=2).eval(), batch_of_three()
    torch.manual_seed(5)
    loss = objective(batch).loss
    torch.manual_seed(5)
    chosen, frames, size = drawn(objective, batch)
    assert chosen.shape[-1] == 2 * N
    latents = objective.encoder(batch.waveforms, batch.lengths).latents.flatten(0, 1)
    nearest = torch.zeros(*chosen.shape[:-1], N, dtype=torch.long)
    for b, length in enumerate(frames.tolist()):
        for k in range(STEPS):
            for t in range(length - STEPS):
                target, others = latents[b * size + t + k + 1], latents[chosen[b, k, t]]
                likeness = torch.cosine_similarity(target[None], others, dim=-1)
                nearest[b, k, t] = chosen[b, k, t, likeness.argsort(descending=True)[:N]]
    torch.testing.assert_close(objective(batch, negatives=nearest).loss, loss)
    with pytest.raises(ValueError, match="hard_pool must be 0 or more"):
        CPCConfig(hard_pool=-1)
