"""Changes that leave an utterance what it is: crop, speed, reverberation, babble, noise, gain; masks, jitter of frames.

Shapes: B utterances, T samples, H samples of an impulse response, F frames, D channels. Crop, noise and gain take
series (B, T, C) of several channels as well.
Batched, on the device; only a change of speed takes one utterance after the other. Padding is zero before and after,
and never reaches an utterance: nothing is drawn from another's padding, and no tail is left behind an utterance's end.
The functions change; `Augment` draws by how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from speechssl.nn.lengths import full_lengths, zero_padding
from speechssl.nn.masking import channel_mask, span_mask
from speechssl.nn.negatives import sample_negatives

HALF_WIDTH = 8  # zero crossings that the resampling kernel reaches to either side
ROLLOFF = 0.95  # its cut-off, as a share of the lower of the two Nyquist frequencies
SMALLEST_POWER = 1e-12  # mean square of what counts as silence


def crop(waveforms: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A piece of `size` samples from a uniform place of each utterance; one that is shorter is taken whole.

    Args:
        waveforms: (B, T), zero behind `lengths` (B,).

    Returns:
        (B, min(T, size)), zero behind the lengths (B,) in samples, the second value.
    """
    spare = (lengths - size).clamp(min=0)
    start = (torch.rand(len(lengths), device=lengths.device, dtype=torch.float64) * (spare + 1)).long().clamp(max=spare)
    lengths = lengths.clamp(max=size)
    index = start[:, None] + torch.arange(min(waveforms.shape[1], size), device=lengths.device)
    index = index.clamp(max=waveforms.shape[1] - 1)
    if waveforms.dim() == 3:
        index = index[..., None].expand(-1, -1, waveforms.shape[2])
    return zero_padding(waveforms.gather(1, index), lengths), lengths


def beside(values: Tensor, waveforms: Tensor) -> Tensor:
    """(B,) -> (B, 1), or (B, 1, 1) where waveforms are series: a value for each utterance."""
    return values.view(-1, *[1] * (waveforms.dim() - 1))


def change_speed(waveforms: Tensor, lengths: Tensor, percents: Tensor, slowest: int) -> tuple[Tensor, Tensor]:
    """Resamples, so that tempo and pitch rise together, by torchaudio's windowed sinc (Smith & Gossett 1984).

    Args:
        waveforms: (B, T), zero behind `lengths` (B,).
        percents: (B,), whole: 110 makes an utterance 1.1 times faster, 100 leaves it as it is. Such ratios have short
            kernels, and resampling is a matrix product.
        slowest: a lower bound of them.

    Returns:
        (B, floor(100 T / slowest)) and lengths (B,) = floor(100 lengths / percents), in samples.
    """
    from torchaudio.functional import resample

    changed = waveforms.new_zeros(len(waveforms), waveforms.shape[1] * 100 // slowest)
    with torch.autocast(waveforms.device.type, enabled=False):  # bf16 would round the sound itself to 8 bits
        for row, waveform, percent in zip(changed, waveforms, percents.tolist(), strict=True):
            resampled = resample(waveform, percent, 100, lowpass_filter_width=HALF_WIDTH, rolloff=ROLLOFF)[: len(row)]
            row[: len(resampled)] = resampled
    lengths = lengths * 100 // percents
    return zero_padding(changed, lengths), lengths


def impulse_response(rt60: Tensor, ratio_db: Tensor, size: int, sample_rate: int) -> Tensor:
    """Room impulse responses: the direct sound, and noise that decays exponentially (Polack 1988), at unit energy.

    Args:
        rt60: (B,), seconds until the noise has fallen by 60 dB.
        ratio_db: (B,), energy of the direct sound to that of the noise, dB.
        size: H, samples at `sample_rate` (Hz), of which the first is the direct sound.
    """
    seconds = torch.arange(1, size, device=rt60.device) / sample_rate
    tail = torch.randn(len(rt60), size - 1, device=rt60.device) * 10 ** (-3 * seconds / rt60[:, None])
    tail = tail / tail.norm(dim=1, keepdim=True).clamp(min=SMALLEST_POWER) * 10 ** (-ratio_db[:, None] / 20)
    impulses = torch.cat((torch.ones_like(tail[:, :1]), tail), 1)
    return impulses / impulses.norm(dim=1, keepdim=True)


def reverberate(waveforms: Tensor, lengths: Tensor, impulses: Tensor) -> Tensor:
    """Convolves (B, T) with impulse responses (B, H) by FFT; what rings behind an utterance's end is cut off."""
    size = 1 << (waveforms.shape[1] + impulses.shape[1] - 2).bit_length()  # no wrap-around
    spectrum = torch.fft.rfft(waveforms, size) * torch.fft.rfft(impulses, size)
    return zero_padding(torch.fft.irfft(spectrum, size)[:, : waveforms.shape[1]], lengths)


def power(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """(B, 1), mean square over each utterance's own samples; (B, 1, C), of each channel of a series."""
    return waveforms.square().sum(1, keepdim=True) / beside(lengths.clamp(min=1), waveforms)


def mix(waveforms: Tensor, lengths: Tensor, noise: Tensor, snr_db: Tensor) -> Tensor:
    """Adds noise (B, T), scaled to a ratio of powers (B,), dB, over each utterance's own samples."""
    noise = zero_padding(noise, lengths)
    wanted = power(waveforms, lengths) * 10 ** (-beside(snr_db, waveforms) / 10)
    return waveforms + noise * (wanted / power(noise, lengths).clamp(min=SMALLEST_POWER)).sqrt()


def babble(waveforms: Tensor, lengths: Tensor, voices: int) -> Tensor:
    """Sums of `voices` other utterances of the batch at equal power, each from a random place and repeated to the end.

    waveforms: (B, T), zero behind `lengths` (B,). Returns (B, T), not scaled; zero where there is no other utterance.
    """
    batch, size = waveforms.shape
    if batch == 1:
        return torch.zeros_like(waveforms)
    device = waveforms.device
    pool = torch.full((batch,), batch, device=device)
    others = sample_negatives(pool, torch.arange(batch, device=device), voices)  # (B, voices)
    level = power(waveforms, lengths).clamp(min=SMALLEST_POWER).rsqrt()
    mixed = torch.zeros_like(waveforms)
    for other in others.T:
        length = lengths[other].clamp(min=1)[:, None]
        start = (torch.rand(batch, 1, device=device) * length).long()
        index = (start + torch.arange(size, device=device)) % length
        mixed += waveforms[other].gather(1, index) * level[other]
    return mixed


def gain(waveforms: Tensor, db: Tensor) -> Tensor:
    """Makes each utterance louder by db (B,), dB. (Log-mel features, normalised per utterance, do not notice.)"""
    return waveforms * 10 ** (beside(db, waveforms) / 20)


def jitter(x: Tensor, lengths: Tensor | None, probability: float) -> Tensor:
    """Replaces each frame by a neighbour, left or right alike, with this probability (Chorowski et al. 2019).

    x: (B, F, D); lengths: (B,) in frames, or None when nothing is padded. The neighbour is never padding.
    """
    frames = full_lengths(x, lengths)[:, None]
    draw = torch.rand(x.shape[:2], device=x.device)
    step = (draw < probability).long() - 2 * (draw < probability / 2).long()  # -1, 0 or 1
    place = torch.arange(x.shape[1], device=x.device)
    moved = torch.minimum((place + step).clamp(min=0), (frames - 1).clamp(min=0))
    return x.gather(1, torch.where(place < frames, moved, place)[..., None].expand_as(x))


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much an utterance is changed. Probabilities are per utterance. All is off (0) by default.

    Ranges are (low, high) of a uniform draw for each utterance.
    """

    sample_rate: int = 16_000  # Hz
    speed: float = 0.0  # largest change of speed and pitch: 0.1 gives 0.9 to 1.1 times, in hundredths
    reverb_prob: float = 0.0
    reverb_seconds: tuple[float, float] = (0.2, 0.8)  # RT60
    reverb_ratio_db: tuple[float, float] = (0.0, 10.0)  # direct to reverberant energy
    babble_prob: float = 0.0
    babble_voices: int = 3
    babble_snr_db: tuple[float, float] = (5.0, 20.0)
    noise_prob: float = 0.0  # white noise
    noise_snr_db: tuple[float, float] = (10.0, 30.0)
    gain_db: float = 0.0  # largest change of level, either way
    jitter_prob: float = 0.0  # per frame
    time_mask_start_prob: float = 0.0  # per frame, of a span
    time_mask_length: int = 5  # frames
    channel_mask_start_prob: float = 0.0  # per channel, of a span
    channel_mask_length: int = 16  # channels

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_prob") and not 0 <= value <= 1:
                raise ValueError(f"{field.name} must be within 0 and 1")
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{field.name} must be (low, high)")
        if self.speed and not 0.01 <= self.speed < 0.5:
            raise ValueError("speed must be 0, or at least 0.01 and below 0.5")
        if min(self.sample_rate, self.reverb_seconds[0], self.babble_voices, self.gain_db + 1) <= 0:
            raise ValueError("sample_rate, reverb_seconds, babble_voices must be positive, and gain_db not negative")

    @property
    def speed_percents(self) -> tuple[int, int]:
        """The slowest and the fastest that `speed` plays an utterance."""
        most = int(100 * self.speed + 1e-6)  # 100 * 0.29 is a little less than 29
        return 100 - most, 100 + most


class Augment(nn.Module):
    """Draws and applies the changes of `config`, anew for each utterance. It has no parameters and no gradients."""

    def __init__(self, config: AugmentConfig):
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Speed, reverberation, babble, noise and gain.

        waveforms: (B, T), zero behind `lengths` (B,), in samples. Returns the same of changed utterances; only a change
        of speed changes T and the lengths.
        """
        config = self.config
        if config.speed:
            slowest, fastest = config.speed_percents
            percents = torch.randint(slowest, fastest + 1, lengths.shape, device=lengths.device)
            waveforms, lengths = change_speed(waveforms, lengths, percents, slowest)
        if config.reverb_prob:
            rt60, ratio = self._uniform(lengths, config.reverb_seconds), self._uniform(lengths, config.reverb_ratio_db)
            size = math.ceil(config.reverb_seconds[1] * config.sample_rate)
            changed = reverberate(waveforms, lengths, impulse_response(rt60, ratio, size, config.sample_rate))
            waveforms = self._some(changed, waveforms, config.reverb_prob)
        if config.babble_prob:
            voices = babble(waveforms, lengths, config.babble_voices)
            changed = mix(waveforms, lengths, voices, self._uniform(lengths, config.babble_snr_db))
            waveforms = self._some(changed, waveforms, config.babble_prob)
        if config.noise_prob:
            noise = torch.randn_like(waveforms)
            changed = mix(waveforms, lengths, noise, self._uniform(lengths, config.noise_snr_db))
            waveforms = self._some(changed, waveforms, config.noise_prob)
        if config.gain_db:
            waveforms = gain(waveforms, self._uniform(lengths, (-config.gain_db, config.gain_db)))
        return waveforms, lengths

    def frames(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Jitter, then spans of frames and of channels set to zero (SpecAugment, Park et al. 2019).

        x: (B, F, D); lengths: (B,) in frames, or None when nothing is padded. Gradients pass.
        """
        config = self.config
        if config.jitter_prob:
            x = jitter(x, lengths, config.jitter_prob)
        if config.time_mask_start_prob:
            start_prob, span = config.time_mask_start_prob, config.time_mask_length
            mask = span_mask(full_lengths(x, lengths), x.shape[1], start_prob=start_prob, span=span, min_spans=0)
            x = x.masked_fill(mask[..., None], 0.0)
        if config.channel_mask_start_prob:
            start_prob, span = config.channel_mask_start_prob, config.channel_mask_length
            mask = channel_mask(len(x), x.shape[2], start_prob=start_prob, span=span, device=x.device)
            x = x.masked_fill(mask[:, None], 0.0)
        return x

    @staticmethod
    def _uniform(lengths: Tensor, limits: tuple[float, float]) -> Tensor:
        """(B,) within the limits."""
        return torch.empty(len(lengths), device=lengths.device).uniform_(*limits)

    @staticmethod
    def _some(changed: Tensor, waveforms: Tensor, probability: float) -> Tensor:
        chosen = torch.rand(len(waveforms), 1, device=waveforms.device) < probability
        return torch.where(beside(chosen[:, 0], waveforms), changed, waveforms)
