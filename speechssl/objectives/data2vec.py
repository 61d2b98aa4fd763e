"""data2vec (Baevski et al. 2022): predict, behind a mask, what a moving average of the model makes of the whole speech.

Shapes: B utterances, F frames, N masked frames of the batch, D hidden channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.ema import Teacher, linear_decay
from speechssl.nn.encoder import Encoder
from speechssl.nn.lengths import full_lengths
from speechssl.nn.masking import span_mask
from speechssl.nn.regression import mean_of_layers, scaled_regression, squares_around_mean
from speechssl.nn.transformer import Transformer, unpack_frames
from speechssl.objectives.base import LossOutput, MaskedFrames, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class Data2VecConfig:
    """The defaults are Base, LibriSpeech 960 h."""

    name: Literal["data2vec"] = "data2vec"
    mask_start_prob: float = 0.065
    mask_length: int = 10  # frames
    top_layers: int = 8  # of the teacher's blocks, the last so many make the target
    beta: float = 0.0  # where smooth L1 goes from squares to magnitudes; 0: squares
    decay_start: float = 0.999  # of the teacher: in a line from start to end over so many updates
    decay_end: float = 0.9999
    decay_updates: int = 30_000


class Data2Vec(Objective):
    """The teacher averages the context network; the feature encoder, and the projection behind it, are shared.

    As published, a target is the mean over the teacher's top blocks of what their feed-forward part gives *before* the
    residual and the norm (not `EncoderOutput.layers`, which lie behind both), each instance-normalised over time; and
    the teacher's positional convolutions are copies of the student's, not averages.
    """

    Config = Data2VecConfig
    min_frames = 2  # one behind the mask, one to see

    def __init__(self, config: Data2VecConfig, encoder: Encoder):
        super().__init__(config, encoder)
        if not isinstance(encoder.context, Transformer):
            raise UserError("data2vec's targets are layers of a Transformer: set encoder.context.name=transformer.")
        if not 1 <= config.top_layers <= encoder.num_layers:
            raise UserError(
                f"objective.top_layers is {config.top_layers}, and encoder.context has {encoder.num_layers} blocks: "
                "choose so many or fewer."
            )
        self.mask_embedding = nn.Parameter(torch.rand(encoder.projected_dim))
        self.prediction = nn.Linear(encoder.dim, encoder.dim)
        self.teacher = Teacher(encoder.context)
        self.decay = config.decay_start  # set by before_step, a function of the step

    def initialized(self, taken: Collection[str]) -> None:
        self.teacher.start(self.encoder.context, taken)

    def before_step(self, step: int) -> None:
        config = self.config
        self.decay = linear_decay(
            step + 1, start=config.decay_start, end=config.decay_end, updates=config.decay_updates
        )

    def after_step(self, step: int) -> None:
        student: Any = self.encoder.context
        self.teacher.update(student, self.decay)
        self.teacher.module.positions.load_state_dict(student.positions.state_dict())

    def chance(self) -> dict[str, float]:
        return {"explained": 0.0}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        """The published run stops below deviations of 0.1 (targets) and 0.01 (predictions): these are their squares."""
        if numbers.get("target_variance", 1.0) < 0.01:
            return (
                f"the teacher has collapsed: its targets hardly differ between frames (target_variance "
                f"{numbers['target_variance']:.2g}, healthy is 0.1 to 1); lower optim.lr, or raise "
                "objective.decay_start and optim.warmup"
            )
        if numbers.get("prediction_variance", 1.0) < 1e-4:
            return (
                f"all predictions are equal (prediction_variance {numbers['prediction_variance']:.2g}); lower optim.lr "
                "or raise optim.warmup"
            )
        return ""

    def describe(self) -> list[tuple[str, str]]:
        frames = torch.full((64,), 15 * 50)
        share = span_mask(frames, 750, start_prob=self.config.mask_start_prob, span=self.config.mask_length)
        blocks = f"the last {self.config.top_layers} of {self.encoder.num_layers} blocks"
        return [("masked", f"{share.float().mean():.0%} of the frames"), ("targets", blocks)]

    def forward(self, batch: Batch, *, mask: Tensor | None = None) -> LossOutput:
        """The sum over masked frames of the scaled regression loss (paper, section 3.4).

        Args:
            batch: waveforms only.
            mask: (B, F) bool, drawn here if None.
        """
        encoder, config = self.encoder, self.config
        latents, lengths = encoder.feature_encoder(batch.waveforms, batch.lengths_or_none)
        whole = encoder.projection(encoder.latent_norm(latents))
        frames = full_lengths(whole, lengths)
        if mask is None:
            mask = span_mask(frames, whole.shape[1], start_prob=config.mask_start_prob, span=config.mask_length)
        masked = torch.where(mask[..., None], self.mask_embedding.to(whole.dtype), encoder.dropout(whole))
        hidden, _ = encoder.context(masked, lengths)
        predictions = self.prediction(hidden[mask]).float()  # (N, D)
        targets = self.targets(whole, lengths)[mask]

        loss = scaled_regression(predictions, targets, config.beta).sum()
        count = mask.sum().float()
        energies, errors = targets.square().sum(-1), (predictions.detach() - targets).square().sum(-1)  # (N,)
        energy, error = energies.sum(), errors.sum()
        metrics = {
            "explained": Metric.mean(energy - error, energy),  # share of the targets' squares; 0: as good as zeros
            "target_variance": Metric.mean(squares_around_mean(targets), targets.numel()),
            "prediction_variance": Metric.mean(squares_around_mean(predictions.detach()), predictions.numel()),
            "masked": Metric.mean(count, frames.sum()),
            "decay": Metric.mean(count * self.decay, count),
        }
        return LossOutput(loss, count, metrics, MaskedFrames(mask, errors / energies.clamp(min=1e-12)))

    @torch.no_grad()
    def targets(self, whole: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, F, D) unmasked input of the context network -> (B, F, D) float32."""
        outputs: list[Tensor] = []
        blocks = self.teacher.module.blocks[-self.config.top_layers :]
        hooks = [block.ffn_out.register_forward_hook(lambda module, args, out: outputs.append(out)) for block in blocks]
        try:
            self.teacher(whole, lengths)
        finally:
            for hook in hooks:
                hook.remove()
        if lengths is not None and outputs[0].shape[:2] != whole.shape[:2]:  # the blocks ran without padding
            outputs = [unpack_frames(out[0], lengths.tolist(), whole.shape[1]) for out in outputs]
        return mean_of_layers(outputs, lengths)
