"""The contract between an objective and the loop."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.nn.encoder import Encoder
from speechssl.nn.quantize import perplexity


@dataclass(frozen=True)
class Metric:
    """A detached sum that can be added over micro-batches and ranks before it becomes a number.

    kind "mean": `values` = (sum, count). kind "perplexity": `values` = a (G, V) histogram of codes.
    """

    values: Tensor
    kind: Literal["mean", "perplexity"] = "mean"

    @classmethod
    def mean(cls, total: Tensor | float, count: Tensor | float) -> Metric:
        total = torch.as_tensor(total).detach().float()
        return cls(torch.stack((total, torch.as_tensor(count, device=total.device).float())))

    def __add__(self, other: Metric) -> Metric:
        return Metric(self.values + other.values, self.kind)

    def result(self) -> float:
        if self.kind == "perplexity":
            return float(perplexity(self.values))
        return float(self.values[0] / self.values[1].clamp(min=1e-12))


@dataclass(frozen=True)
class MaskedFrames:
    """What an objective hid and how it guessed it, to be drawn.

    mask: (B, F) bool, True = hidden.
    answers: (N,) detached, one per hidden frame in the order of mask.nonzero(): bool, whether it was right; or, where
        nothing is right or wrong, float: the squared error as a share of the target's square (1: as good as zeros).
    """

    mask: Tensor
    answers: Tensor


@dataclass(frozen=True)
class LossOutput:
    """
    loss: the SUM over this rank's targets; the loop divides once per update, by the global count.
    num_targets: how many targets, a 0-d tensor on the loss's device.
    metrics: detached sums with their counts.
    masked: of an objective that hides frames; the loop does not read it.
    """

    loss: Tensor
    num_targets: Tensor
    metrics: dict[str, Metric] = field(default_factory=dict)
    masked: MaskedFrames | None = None


class Objective(nn.Module):
    """Owns its encoder, heads, quantizer, teacher or queue; makes its own masks, views and negatives in `forward`.

    A subclass sets `Config` (a frozen dataclass of its own numbers) and is built as `cls(config, encoder)`.
    """

    Config: ClassVar[type]
    needs: frozenset[str] = frozenset()  # optional Batch fields it reads; checked before training starts
    min_frames: int = 1  # shortest utterance it can learn from
    takes_channels: bool = False  # it learns from series of several channels, (B, T, C), as well as from sound
    couples_ranks: bool = False  # its loss compares utterances of all ranks: none may be idle

    def __init__(self, config, encoder: Encoder):
        super().__init__()
        self.config = config
        self.encoder = encoder

    def forward(self, batch: Batch) -> LossOutput:
        raise NotImplementedError

    def initialized(self, taken: Collection[str]) -> None:
        """Called when weights of these names came from another run (`--init`): a teacher that did not is made anew."""

    def before_step(self, step: int) -> None:
        """Sets what is a function of the step (temperature, freezing). Called before update `step` (from 0)."""

    def after_step(self, step: int) -> None:
        """Changes state after update number `step` (from 1): teacher, queue."""

    def frozen(self) -> Iterable[nn.Parameter]:
        """Parameters that must not move in this update although they may in a later one."""
        return ()

    def chance(self) -> dict[str, float]:
        """What each metric is when nothing has been learnt; printed beside it."""
        return {}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        """A sentence that names the collapse which these averages of its metrics show; empty while it is healthy."""
        return ""

    def describe(self) -> list[tuple[str, str]]:
        """Lines for `speechssl show`, beyond what every objective has."""
        return []

    def wrong_units(self, hop: int, num_units: int) -> str:
        """Why units of this hop (samples) and number do not fit, and what to do: half a sentence; empty: they fit."""
        return ""

    def impossible_targets(self, lengths: Tensor, tokens: list[list[int]]) -> list[int]:
        """Indices of utterances whose labels cannot be produced from their length in samples (N,)."""
        return []


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x, with its gradient multiplied by `scale`."""
    return x if scale == 1.0 else x.detach() + (x - x.detach()) * scale if scale else x.detach()
