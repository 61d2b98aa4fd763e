"""What every two-view objective shares: two augmented crops of an utterance, each made into one vector.

Speech without labels has no other pairs: two pieces of the same utterance are what should look alike (COLA, Saeed et
al. 2021). A view is cropped, augmented (`nn.augment`), encoded, averaged over its valid frames and projected; after
pretraining the projection is thrown away.

Shapes: B utterances, T samples of a view, F frames, D hidden channels, P channels of the projection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.augment import Augment, AugmentConfig, crop
from speechssl.nn.distributed import BatchNorm
from speechssl.nn.encoder import Encoder
from speechssl.nn.pooling import mean_pool
from speechssl.nn.view_losses import nearest_is_own, spread, unit
from speechssl.objectives.base import LossOutput, Metric, Objective

OF_SOUND = ("speed", "reverb_prob", "babble_prob")  # augmentations that say nothing of sensors
COLLAPSED = 0.01  # a spread below it; healthy runs on speech were seen above 0.08, also at their start


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """How views are made; every two-view objective has these. Views are as in COLA; augmentations are off."""

    view_seconds: float = 0.96  # of an utterance that is longer; a shorter one is seen whole
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        if self.view_seconds <= 0:
            raise ValueError("view_seconds must be positive")


@dataclass(frozen=True)
class View:
    """waveforms (B, T) or series (B, T, C), zero behind lengths (B,) in samples, or None when nothing is padded."""

    waveforms: Tensor
    lengths: Tensor | None


@dataclass(frozen=True)
class Compared:
    """
    loss: the sum over utterances, or the mean x B of a loss that couples them; 0-d.
    pooled: (B, D), what the encoder makes of the first view.
    first, second: (B, P), projections of the two views.
    """

    loss: Tensor
    pooled: Tensor
    first: Tensor
    second: Tensor
    metrics: dict[str, Metric] = field(default_factory=dict)


class Branch(nn.Module):
    """Encoder, mean over valid frames, projection. A student's is made in passing; a teacher averages one."""

    def __init__(self, encoder: Encoder, projection: nn.Module, augment: Augment):
        super().__init__()
        self.encoder, self.projection, self.augment = encoder, projection, augment

    def forward(self, view: View) -> tuple[Tensor, Tensor]:
        """Returns pooled (B, D), float32, and projected (B, P)."""
        latents, lengths = self.encoder.feature_encoder(view.waveforms, view.lengths)
        projected, _ = self.encoder.project(latents)
        hidden, _ = self.encoder.context(self.augment.frames(projected, lengths), lengths)
        pooled = mean_pool(hidden, lengths)
        return pooled, self.projection(pooled)


class TwoViews(Objective):
    """A subclass sets `projection` and gives `compare`; its config is a ViewsConfig.

    Whatever is taken over the batch (negatives, batch statistics) is taken over one round: this micro-batch and those
    that the other processes work on at the same time. Micro-batches that follow one another in an update do not meet,
    so give each device as large a micro-batch as it holds (data.seconds_per_batch) rather than many.
    """

    couples_ranks = True
    takes_channels = True
    config: ViewsConfig
    projection: nn.Module

    def __init__(self, config: ViewsConfig, encoder: Encoder):
        super().__init__(config, encoder)
        self.augment = Augment(config.augment)
        if encoder.channels > 1 and (changes := [name for name in OF_SOUND if getattr(config.augment, name)]):
            raise UserError(
                f"objective.augment.{changes[0]} changes sound, and the encoder reads series of {encoder.channels} "
                "channels; set it to 0 (noise, gain, jitter and masks suit series)."
            )
        self.view_samples = round(config.view_seconds * config.augment.sample_rate)
        field, fastest = encoder.feature_encoder.receptive_field, 1 + config.augment.speed
        if encoder.frame_lengths(int(self.view_samples / fastest)) < 1:
            raise UserError(
                f"objective.view_seconds is {config.view_seconds:g}, which is shorter than one frame of this encoder; "
                f"set it to {field * fastest / config.augment.sample_rate + 0.005:.2f} or more."
            )
        self.min_frames = 1 + math.ceil(field * config.augment.speed / encoder.hop)  # one is left when played fastest

    @property
    def student(self) -> Branch:
        """The branch that learns; not a part of this module, whose parameters it shares."""
        return Branch(self.encoder, self.projection, self.augment)

    def compare(self, first: View, second: View) -> Compared:
        raise NotImplementedError

    def describe(self) -> list[tuple[str, str]]:
        frames = self.encoder.frame_lengths(self.view_samples)
        return [("views", f"two of {self.config.view_seconds:g} s ({frames} frames) per utterance")]

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        if numbers.get("chance", 0.0) >= 1:
            return (
                "every micro-batch holds one utterance, which leaves nothing to compare; raise data.seconds_per_batch"
            )
        names = {"pooled_spread": "the encoder's vectors", "projected_spread": "the projections"}
        for name, what in names.items():
            if numbers.get(name, 1.0) < COLLAPSED:
                return (
                    f"{what} of different utterances all point the same way ({name} {numbers[name]:.2g}, healthy is "
                    "0.1 to 1): collapse; lower optim.lr, raise optim.warmup, or make micro-batches larger"
                )
        return ""

    def forward(self, batch: Batch, *, views: tuple[View, View] | None = None) -> LossOutput:
        """num_targets counts the utterances that have a frame in both views.

        Args:
            batch: waveforms only.
            views: drawn here if None.

        Raises:
            ValueError: no utterance is long enough for a frame.
        """
        first, second = self.draw(batch) if views is None else views
        compared = self.compare(first, second)
        one, two = compared.first.detach(), compared.second.detach()
        number = len(one)
        count = torch.tensor(float(number), device=one.device)
        several = count * (number > 1)  # a lone utterance says nothing about how much they differ
        metrics = {
            "accuracy": Metric.mean(nearest_is_own(one, two).sum(), count),  # its own second view is the nearest
            "chance": Metric.mean(1.0, number),  # of that, as micro-batches differ in size
            "alignment": Metric.mean((unit(one) - unit(two)).square().sum(), count),  # 0: views agree; 2: unrelated
            "pooled_spread": Metric.mean(spread(compared.pooled.detach()) * several, several),
            "projected_spread": Metric.mean(spread(one) * several, several),
            **compared.metrics,
        }
        return LossOutput(compared.loss, count, metrics)

    @torch.no_grad()
    def draw(self, batch: Batch) -> tuple[View, View]:
        """Two views of every utterance, save those that are too short for a frame."""
        views = [self.augment(*crop(batch.waveforms, batch.lengths, self.view_samples)) for _ in range(2)]
        if not batch.padded and not self.config.augment.speed:
            return View(views[0][0], None), View(views[1][0], None)
        if batch.padded:  # else all are as long as `min_frames` asks
            frames = torch.stack([self.encoder.frame_lengths(lengths) for _, lengths in views])
            enough = (frames > 0).all(0)
            if not enough.any():
                raise ValueError(f"utterances of at most {int(batch.lengths.max())} samples are too short for a frame")
            if not enough.all():
                views = [(waveforms[enough], lengths[enough]) for waveforms, lengths in views]
        return View(*views[0]), View(*views[1])


def perceptron(dims: tuple[int, ...], *, norm: bool) -> nn.Sequential:
    """Linear maps dims[0] -> dims[1] -> ... with ReLU between them, and batch norm before each ReLU where `norm`."""
    layers: list[nn.Module] = []
    for number, (dim_in, dim) in enumerate(itertools.pairwise(dims)):
        if number and norm:
            layers.append(BatchNorm(dim_in))
        if number:
            layers.append(nn.ReLU())
        is_last = number == len(dims) - 2
        layers.append(nn.Linear(dim_in, dim, bias=is_last or not norm))  # batch norm would take the bias away again
    return nn.Sequential(*layers)
