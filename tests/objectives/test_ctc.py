"""CTC fine-tuning and the CTC probe: loss, error rates, freezing, masks."""

import random
from dataclasses import replace

import pytest
import torch
from parity import shake
from tiny import tiny_batch, tiny_encoder

from speechssl.nn.augment import Augment, AugmentConfig
from speechssl.nn.heads import ctc_loss
from speechssl.objectives.ctc import CTC, CTCConfig
from speechssl.objectives.ctc_probe import CTCProbe, CTCProbeConfig
from speechssl.objectives.transcription import error_rates

VOCAB, BOUNDARY = 6, 1
TOKENS = [[2, 3, 1, 4, 4], [5, 1, 2], [3]]
NO_MASKS = {"time_mask_start_prob": 0.0, "channel_mask_start_prob": 0.0}


def ctc(**numbers) -> CTC:
    torch.manual_seed(3)
    config = CTCConfig(**({"vocab_size": VOCAB, "word_boundary": BOUNDARY, "time_mask_length": 3} | numbers))
    objective = CTC(config, tiny_encoder("group"))
    shake(objective)
    return objective


def batch_of_three(**numbers):
    return tiny_batch(3000, 2400, 1500, tokens=TOKENS, **numbers)


@pytest.mark.parametrize("symbols", [1, 2])
def test_loss_is_that_of_the_encoder_and_a_linear_map(symbols):
    objective, batch = ctc(symbols_per_frame=symbols).eval(), batch_of_three()
    output = objective(batch)
    encoded = objective.encoder(batch.waveforms, batch.lengths)
    logits = objective.head.linear(encoded.hidden).reshape(3, -1, VOCAB)
    losses = ctc_loss(logits.log_softmax(-1), encoded.lengths * symbols, batch.tokens, batch.token_lengths)
    torch.testing.assert_close(output.loss, losses.sum())
    assert output.num_targets == sum(len(ids) for ids in TOKENS)


def test_masks_are_for_training():
    batch = batch_of_three()
    objective = ctc(time_mask_start_prob=0.3)
    noisy = objective.train()(batch).loss
    quiet = objective.eval()(batch).loss
    assert not torch.isclose(noisy, quiet)
    plain = ctc(**NO_MASKS)
    torch.testing.assert_close(plain.train()(batch).loss, plain.eval()(batch).loss)


def test_masks_cover_frames_with_the_embedding_and_channels_with_zero():
    objective = ctc(time_mask_start_prob=0.1, channel_mask_start_prob=0.05, channel_mask_length=4)
    projected = torch.randn(3, 40, 32)
    frames = torch.tensor([40, 25, 10])
    changed = objective._mask(projected, frames)
    zero = (changed == 0).all(1)  # (B, D): channels that are masked
    assert 0 < zero.float().mean() < 1
    kept = changed == projected
    masked = changed == objective.mask_embedding
    assert (kept | masked | zero[:, None]).all()
    covered = (masked | zero[:, None]).all(-1)
    assert covered.any()
    assert not covered[torch.arange(40) >= frames[:, None]].any(), "no mask on padding"


def test_masks_are_as_wide_as_what_the_context_reads():
    """CPC and APC: a recurrent network reads latents of another width than its own."""
    objective = CTC(
        CTCConfig(vocab_size=VOCAB, time_mask_start_prob=0.3, time_mask_length=3), tiny_encoder("recurrent")
    )
    output = objective.train()(batch_of_three())
    output.loss.backward()
    assert output.loss.isfinite()
    assert objective.mask_embedding.grad is not None
    assert objective.mask_embedding.shape == (16,)
    assert objective.mask_embedding.grad.any()


def test_sound_is_changed_while_training_only():
    batch = batch_of_three()
    objective = ctc(**NO_MASKS, augment=AugmentConfig(speed=0.2, noise_prob=1.0))
    plain = ctc(**NO_MASKS)
    torch.testing.assert_close(objective.eval()(batch).loss, plain.eval()(batch).loss)
    torch.manual_seed(5)
    heard = objective.train().log_probs(batch)
    torch.manual_seed(5)
    changed, lengths = Augment(objective.config.augment)(batch.waveforms, batch.lengths)
    assert lengths.tolist() != batch.lengths.tolist()
    expected = plain.train().log_probs(replace(batch, waveforms=changed, lengths=lengths))
    torch.testing.assert_close(heard, expected)


def test_frames_are_changed_while_training_only():
    batch = batch_of_three()
    objective, plain = ctc(**NO_MASKS, augment=AugmentConfig(channel_mask_start_prob=1.0)), ctc(**NO_MASKS)
    torch.testing.assert_close(objective.eval()(batch).loss, plain.eval()(batch).loss)
    inputs = []
    objective.encoder.context.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    objective.train()(batch)
    assert not inputs[0].any(), "all channels are masked"


def test_labels_must_fit_the_fastest_speed():
    objective = ctc(augment=AugmentConfig(speed=0.25)).train()
    frames = 10
    samples = next(n for n in range(5000) if objective.encoder.frame_lengths(n) == frames)
    lengths, tokens = torch.tensor([samples, int(1.3 * samples)]), [[2, 3] * (frames // 2)] * 2
    assert objective.impossible_targets(lengths, tokens) == [0]
    assert objective.eval().impossible_targets(lengths, tokens) == []


# ------------------------------------------------------------------------------------------------------------- freezing


def learn(objective, batch, step):
    """One update as the loop makes it."""
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    objective.train()
    objective.before_step(step)
    objective(batch).loss.backward()
    for parameter in objective.frozen():
        parameter.grad = None
    optimizer.step()
    objective.zero_grad()


def test_the_encoder_waits_for_its_head():
    objective, batch = ctc(freeze_encoder_updates=2, time_mask_start_prob=0.3), batch_of_three()
    for step, encoder_moves in ((0, False), (1, False), (2, True), (3, True)):
        before = {name: p.detach().clone() for name, p in objective.named_parameters()}
        learn(objective, batch, step)
        moved = {name for name, p in objective.named_parameters() if not p.equal(before[name])}
        assert "head.linear.weight" in moved
        assert any(name.startswith("encoder.context") for name in moved) == encoder_moves
        assert not any(name.startswith("encoder.feature_encoder") for name in moved), "that never learns"


def test_a_resumed_run_knows_whether_it_is_frozen():
    """Freezing is a function of the step alone."""
    objective = ctc(freeze_encoder_updates=5)
    objective.before_step(5)
    assert list(objective.frozen()) == []
    objective.before_step(4)
    assert len(list(objective.frozen())) == len(list(objective.encoder.parameters()))


@pytest.mark.parametrize("freeze", [True, False])
def test_the_feature_encoder_learns_only_if_told(freeze):
    objective = ctc(freeze_feature_encoder=freeze)
    objective(batch_of_three()).loss.backward()
    gradients = [p.grad for p in objective.encoder.feature_encoder.parameters()]
    assert all(g is None for g in gradients) if freeze else all(g.any() for g in gradients)
    assert objective.encoder.projection.weight.grad.any()


# ---------------------------------------------------------------------------------------------------------------- probe


def test_the_probe_leaves_its_encoder_alone():
    encoder = tiny_encoder("group", dropout=0.5, layer_drop=0.5)
    objective = CTCProbe(CTCProbeConfig(vocab_size=VOCAB, dim=8, dropout=0.0), encoder).train()
    batch = batch_of_three()
    first, second = objective(batch), objective(batch)
    assert not encoder.training
    torch.testing.assert_close(first.loss, second.loss), "no dropout in what does not learn"
    first.loss.backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for name, p in objective.named_parameters() if not name.startswith("encoder."))
    assert len(objective.layer_sum.weights) == encoder.num_layers + 1


def test_the_probe_hears_a_few_speeds_and_encodes_each_once(monkeypatch):
    torch.manual_seed(1)
    encoder = tiny_encoder("group")
    config = CTCProbeConfig(vocab_size=VOCAB, dim=8, dropout=0.0, speeds=(80, 125))
    objective, batch, heard = CTCProbe(config, encoder).train(), batch_of_three(), []
    monkeypatch.setattr(encoder, "forward", lambda x, plain=encoder.forward: heard.append(x.shape[1]) or plain(x))
    for _ in range(12):
        objective(batch)
    assert sorted(heard) == sorted(length * 100 // percent for length in (3000, 2400, 1500) for percent in (80, 125))
    monkeypatch.undo()
    plain = CTCProbe(replace(config, speeds=()), encoder)
    plain.load_state_dict(objective.state_dict())
    torch.testing.assert_close(objective.eval()(batch).loss, plain.eval()(batch).loss)
    samples = next(n for n in range(5000) if encoder.frame_lengths(n) == 10)
    long_enough, labels = torch.tensor([samples, int(1.3 * samples)]), [[2, 3] * 5] * 2
    assert objective.train().impossible_targets(long_enough, labels) == [0]
    assert objective.eval().impossible_targets(long_enough, labels) == []


def test_the_probe_runs_its_encoder_once_until_other_weights_come(monkeypatch):
    encoder = tiny_encoder("group")
    objective = CTCProbe(CTCProbeConfig(vocab_size=VOCAB, dim=8, dropout=0.0), encoder).train()
    batch, calls = batch_of_three(), []
    monkeypatch.setattr(encoder, "forward", lambda *a, plain=encoder.forward: calls.append(1) or plain(*a))
    first = objective(batch).loss
    assert torch.equal(objective(batch).loss, first)
    assert len(calls) == 3
    other = {name: value * 1.5 for name, value in objective.state_dict().items()}
    objective.load_state_dict(other)
    assert not torch.equal(objective(batch).loss, first)
    assert len(calls) == 6


# ---------------------------------------------------------------------------------------------------------- error rates


def spell(ids) -> str:
    return "".join("- abcd"[i] for i in ids)


def best_path(ids, generator) -> list[int]:
    """An alignment that spells `ids`: repeated tokens, blanks here and there."""
    path: list[int] = []
    for before, token in zip([None, *ids], ids, strict=False):
        if token == before or generator.random() < 0.3:
            path += [0]
        path += [token] * generator.randint(1, 3)
    return path + [0] * generator.randint(0, 2)


def sentence(generator) -> list[int]:
    words = [[generator.randint(2, 5) for _ in range(generator.randint(1, 4))] for _ in range(generator.randint(1, 4))]
    return [token for i, word in enumerate(words) for token in ([BOUNDARY] if i else []) + word]


def test_error_rates_are_jiwers():
    jiwer = pytest.importorskip("jiwer")
    generator = random.Random(0)
    references = [sentence(generator) for _ in range(20)]
    said = [sentence(generator) if i % 3 else ids for i, ids in enumerate(references)]
    paths = [best_path(ids, generator) for ids in said]
    frames, longest = max(map(len, paths)) + 3, max(map(len, references))
    rubbish = 5  # behind the end, where it must not be read
    rates = error_rates(
        torch.tensor([path + [rubbish] * (frames - len(path)) for path in paths]),
        torch.tensor([len(path) for path in paths]),
        torch.tensor([ids + [rubbish] * (longest - len(ids)) for ids in references]),
        torch.tensor([len(ids) for ids in references]),
        BOUNDARY,
    )
    references, said = [spell(ids) for ids in references], [spell(ids) for ids in said]
    assert 0 < jiwer.wer(references, said) < 2
    assert rates["wer"].result() == pytest.approx(jiwer.wer(references, said))
    assert rates["ter"].result() == pytest.approx(jiwer.cer(references, said))


def test_errors_by_hand():
    """Repeats merge, a blank separates; boundaries at the edges and doubled ones are no words."""
    path = [BOUNDARY, 2, 2, 0, 2, BOUNDARY, 0, BOUNDARY, 3, 0, BOUNDARY]  # " aa  b "
    reference = [2, 2, BOUNDARY, 3, BOUNDARY, 4]  # "aa b c"
    numbers = [torch.tensor([row]) for row in (path, len(path), reference, len(reference))]
    rates = error_rates(*numbers, BOUNDARY)
    assert rates["wer"].values.tolist() == [1, 3]
    assert rates["ter"].values.tolist() == [3, 6]
    assert set(error_rates(*numbers, -1)) == {"ter"}


def test_error_rates_are_measured_in_evaluation():
    objective, batch = ctc(), batch_of_three()
    assert set(objective.train()(batch).metrics) == {"ctc", "blank"}
    metrics = objective.eval()(batch).metrics
    assert set(metrics) == {"ctc", "blank", "ter", "wer"}
    assert metrics["ter"].values[1] == sum(len(ids) for ids in TOKENS)
    assert metrics["wer"].values[1] == 5


def test_blank_collapse_shows():
    objective = ctc().eval()
    with torch.no_grad():
        objective.head.linear.bias[0] = 1000
    metrics = objective(batch_of_three()).metrics
    assert metrics["blank"].result() == 1
    assert metrics["ter"].result() == metrics["wer"].result() == 1


# ---------------------------------------------------------------------------------------------------- impossible labels


@pytest.mark.parametrize("symbols", [1, 2])
def test_impossible_targets_are_those_of_infinite_loss(symbols):
    objective = ctc(symbols_per_frame=symbols).eval()
    lengths = torch.tensor([85 + 80 * extra for extra in (0, 1, 2, 3, 4, 5)])  # 1 .. 6 frames
    tokens = [[2, 2], [2, 3, 4, 5], [2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2, 2]]
    losses = []
    with torch.no_grad():
        for length, ids in zip(lengths.tolist(), tokens, strict=True):
            losses.append(objective(tiny_batch(length, tokens=[ids])).loss)
    impossible = [i for i, loss in enumerate(losses) if loss.isinf()]
    assert impossible
    assert objective.impossible_targets(lengths, tokens) == impossible


@pytest.mark.parametrize("config", [CTCConfig, CTCProbeConfig])
def test_a_vocabulary_is_needed(config):
    with pytest.raises(ValueError, match="a vocabulary is needed"):
        config()
