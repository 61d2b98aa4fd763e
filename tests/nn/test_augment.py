"""Augmentations against what their units promise; padding neither hears nor is heard."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechssl.nn import augment
from speechssl.nn.augment import Augment, AugmentConfig
from speechssl.nn.lengths import padding_mask, zero_padding

RATE = 16_000
ALL = AugmentConfig(
    speed=0.2,
    reverb_prob=0.5,
    babble_prob=0.5,
    noise_prob=0.5,
    gain_db=6.0,
    jitter_prob=0.3,
    time_mask_start_prob=0.1,
    channel_mask_start_prob=0.1,
    channel_mask_length=3,
)


def speech(*lengths: int, size: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of these lengths in samples, zero behind them."""
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.zeros(len(lengths), max(*lengths, size, 1))
    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = torch.randn(length, generator=generator)
    return waveforms, torch.tensor(lengths)


def tone(hertz: float, samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz / RATE * torch.arange(samples).double()).float()


def decibels(ratio) -> float:
    return 10 * math.log10(float(ratio))


# ---------------------------------------------------------------------------------------------------------------- crop


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5), size=st.integers(1, 50), seed=st.integers(0, 99))
def test_crop(lengths, size, seed):
    torch.manual_seed(seed)
    widest = max(*lengths, 1)
    index = torch.arange(1, widest + 1).float().expand(len(lengths), -1)  # a sample's value is its place + 1
    lengths = torch.tensor(lengths)
    cropped, found = augment.crop(zero_padding(index, lengths), lengths, size)
    assert cropped.shape == (len(lengths), min(widest, size))
    assert found.equal(lengths.clamp(max=size))
    for row, length, whole in zip(cropped, found.tolist(), lengths.tolist(), strict=True):
        piece = row[:length].tolist()
        assert piece == [piece[0] + i for i in range(length)] if length else True
        assert all(1 <= value <= whole for value in piece)
        assert not row[length:].any()


def test_crop_starts_everywhere_alike():
    index = torch.arange(10.0).expand(4000, -1)
    starts = augment.crop(index, torch.full((4000,), 10), 7)[0][:, 0]
    counts = torch.bincount(starts.long(), minlength=4)
    assert len(counts) == 4
    assert (counts > 900).all()


# --------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize("percent", [80, 93, 100, 110, 125])
def test_speed_raises_the_pitch_and_shortens(percent):
    waveform, lengths = tone(440, 8000)[None], torch.tensor([8000])
    changed, found = augment.change_speed(waveform, lengths, torch.tensor([percent]), 80)
    assert changed.shape == (1, 10_000)
    assert int(found) == 800_000 // percent
    inside = slice(50, int(found) - 50)
    torch.testing.assert_close(changed[0, inside], tone(4.4 * percent, int(found))[inside], atol=0.01, rtol=0)
    assert not changed[0, int(found) :].any()


def test_speed_is_drawn_from_whole_hundredths_within_its_bounds():
    torch.manual_seed(1)
    waveforms, lengths = torch.randn(500, 100), torch.full((500,), 100)
    changed, found = Augment(AugmentConfig(speed=0.127))(waveforms, lengths)
    assert changed.shape == (500, 100 * 100 // 88)
    assert set(found.tolist()) == {100 * 100 // percent for percent in range(88, 113)}


def test_speeding_up_leaves_no_aliases():
    """7.5 kHz would come out at 16 - 11.25 = 4.75 kHz."""
    waveform = (tone(7500, 8000) + tone(1000, 8000))[None]
    changed, lengths = augment.change_speed(waveform, torch.tensor([8000]), torch.tensor([150]), 100)
    spectrum = torch.fft.rfft(changed[0, 100 : int(lengths) - 100] * torch.hann_window(int(lengths) - 200)).abs()
    hertz = torch.fft.rfftfreq(int(lengths) - 200, 1 / RATE)
    wanted, alias = (spectrum[(hertz - at).abs() < 50].max() for at in (1500, 4750))
    assert alias < 0.01 * wanted


# ------------------------------------------------------------------------------------------------------- reverberation


def test_impulse_responses_decay_by_60_db():
    rt60 = torch.tensor([0.2, 0.4]).repeat_interleave(200)
    ratio = torch.full((400,), 6.0)
    impulses = augment.impulse_response(rt60, ratio, 8000, RATE)
    energy = impulses.square()
    torch.testing.assert_close(energy.sum(1), torch.ones(400))
    for seconds, some in ((0.2, energy[:200]), (0.4, energy[200:])):
        early, late = (some[:, round(at * RATE) :][:, :320].mean() for at in (0.02, 0.02 + seconds / 2))
        assert decibels(early / late) == pytest.approx(30, abs=1)
    assert decibels(energy[0, 0] / energy[0, 1:].sum()) == pytest.approx(6, abs=0.01)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4), taps=st.integers(1, 30))
def test_reverberation_is_convolution(lengths, taps):
    waveforms, lengths = speech(*lengths)
    impulses = torch.randn(len(lengths), taps)
    found = augment.reverberate(waveforms, lengths, impulses)
    for row, impulse, whole, length in zip(waveforms, impulses, found, lengths.tolist(), strict=True):
        expected = np.convolve(row[:length].numpy(), impulse.numpy())[:length]
        np.testing.assert_allclose(whole[:length].numpy(), expected, atol=1e-4)
        assert not whole[length:].any()


# --------------------------------------------------------------------------------------------- noise, babble, gain


@given(snr=st.floats(-5, 30), length=st.integers(50, 400), padding=st.integers(0, 100))
def test_noise_has_its_ratio_over_the_utterance(snr, length, padding):
    waveforms, lengths = speech(length, 400, size=length + padding)
    noise = 7 * torch.randn_like(waveforms)
    mixed = augment.mix(waveforms, lengths, noise, torch.tensor([snr, 0.0]))
    added = (mixed - waveforms)[0]
    assert decibels(waveforms[0].square().sum() / added.square().sum()) == pytest.approx(snr, abs=0.01)
    assert not added[length:].any()


def test_silence_stays_silent():
    waveforms, lengths = torch.zeros(2, 50), torch.tensor([50, 0])
    assert not augment.mix(waveforms, lengths, torch.randn(2, 50), torch.zeros(2)).any()
    loud, lengths = speech(50, 50)
    assert augment.mix(loud, lengths, torch.zeros(2, 50), torch.zeros(2)).equal(loud)
    assert augment.babble(waveforms, lengths, 2).isfinite().all()


@given(seed=st.integers(0, 99), voices=st.integers(1, 4))
def test_babble_is_of_others_and_never_of_padding(seed, voices):
    torch.manual_seed(seed)
    lengths = torch.tensor([30, 7, 19, 1])
    waveforms = zero_padding(torch.tensor([1.0, 1e3, 1e6, 1e9])[:, None].expand(-1, 30), lengths)
    mixed = augment.babble(waveforms, lengths, voices)
    torch.testing.assert_close(mixed, torch.full((4, 30), float(voices)))  # at equal power, and without a gap
    own = torch.zeros(3, 20)
    own[1] = torch.randn(20)
    heard = augment.babble(own, torch.full((3,), 20), 20).any(1)
    assert heard.tolist() == [True, False, True], "everybody hears it but itself"


def test_one_utterance_has_no_others():
    assert not augment.babble(torch.randn(1, 20), torch.tensor([20]), 3).any()


def test_gain():
    waveforms, _ = speech(100, 100)
    louder = augment.gain(waveforms, torch.tensor([6.0, -20.0]))
    ratio = louder.square().mean(1) / waveforms.square().mean(1)
    assert [decibels(r) for r in ratio] == pytest.approx([6, -20], abs=1e-3)


# ------------------------------------------------------------------------------------------------------------- jitter


def test_jitter_takes_neighbours():
    frames = torch.arange(1.0, 1001).expand(4, -1)[..., None]
    lengths = torch.tensor([1000, 500, 1, 0])
    moved = augment.jitter(zero_padding(frames, lengths), lengths, 0.3)[..., 0]
    step = moved - zero_padding(frames, lengths)[..., 0]
    assert set(step.unique().tolist()) == {-1.0, 0.0, 1.0}
    for sign in (-1, 1):
        assert float((step[0] == sign).float().mean()) == pytest.approx(0.15, abs=0.04)
    assert not step[padding_mask(lengths, 1000)].any()
    assert moved[1, :500].max() <= 500
    assert moved[2, 0] == 1


# ------------------------------------------------------------------------------------------------------------ together


def test_all_is_off_by_default():
    waveforms, lengths = speech(300, 200)
    same, found = Augment(AugmentConfig())(waveforms, lengths)
    assert same is waveforms
    assert found is lengths
    assert Augment(AugmentConfig()).frames(waveforms[..., None], lengths) is not None
    frames = torch.randn(2, 5, 4)
    assert Augment(AugmentConfig()).frames(frames, None) is frames


@pytest.mark.parametrize("size", [4000, 7001])
def test_padding_does_not_leak(size):
    """Whatever is drawn: silence behind the end, and as loud as promised within; lengths of zero and one do no harm."""
    waveforms, lengths = speech(4000, 2500, 1, 0, size=size)
    for seed in range(4):
        torch.manual_seed(seed)
        changed, found = Augment(ALL)(waveforms, lengths)
        assert changed.isfinite().all()
        assert not changed[padding_mask(found, changed.shape[1])].any()
        assert (found <= (lengths / 0.8).ceil()).all()
        assert (found >= (lengths / 1.2).floor()).all()
        assert changed.shape[1] >= int(found.max())
        frames = zero_padding(torch.randn(4, 30, 8), torch.tensor([30, 12, 1, 0]))
        masked = Augment(ALL).frames(frames, torch.tensor([30, 12, 1, 0]))
        assert not masked[padding_mask(torch.tensor([30, 12, 1, 0]), 30)].any()


@pytest.mark.parametrize("name", [f.name for f in fields(AugmentConfig) if getattr(ALL, f.name) and not f.default])
def test_each_change_is_made_on_its_own(name):
    value = getattr(ALL, name)
    alone = Augment(replace(AugmentConfig(), **{name: 1.0 if value == 0.5 else value}))
    waveforms, lengths = speech(4000, 4000, 4000)
    frames = torch.randn(3, 40, 8)
    changed = alone(waveforms, lengths)[0]
    masked = alone.frames(frames, None)
    of_frames = "jitter" in name or "mask" in name
    assert changed.equal(waveforms) == of_frames
    assert masked.equal(frames) != of_frames


def test_mixed_precision_does_not_round_the_sound():
    waveforms, lengths = speech(4000, 2500)
    torch.manual_seed(1)
    expected = Augment(ALL)(waveforms, lengths)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(Augment(ALL)(waveforms, lengths), expected, atol=0, rtol=0)


def test_a_share_of_the_utterances_is_changed():
    waveforms, lengths = speech(*[40] * 1000)
    changed, _ = Augment(AugmentConfig(noise_prob=0.3))(waveforms, lengths)
    share = (changed != waveforms).any(1).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.05)


def test_gradients_pass_the_masks():
    frames = torch.randn(2, 20, 8, requires_grad=True)
    masked = Augment(ALL).frames(frames, None)
    masked.sum().backward()
    assert frames.grad.any()
    assert (frames.grad == 0).any()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"noise_prob": 1.5}, "noise_prob must be within 0 and 1"),
        ({"noise_snr_db": (20.0, 5.0)}, "noise_snr_db must be"),
        ({"speed": 0.5}, "speed must be"),
        ({"speed": 0.001}, "speed must be"),
        ({"reverb_seconds": (0.0, 0.3)}, "reverb_seconds"),
        ({"gain_db": -1.0}, "gain_db"),
    ],
)
def test_numbers_that_make_no_sense(numbers, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**numbers)
