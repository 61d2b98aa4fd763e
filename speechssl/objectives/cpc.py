"""Contrastive predictive coding (van den Oord et al. 2018): a causal context predicts the latents of the next K steps.

Shapes: B utterances, F frames, S = F - K frames that predict, C latent and D context channels, K steps, N negatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speechssl.batch import Batch
from speechssl.errors import UserError
from speechssl.nn.context import is_causal
from speechssl.nn.encoder import Encoder
from speechssl.nn.lengths import full_lengths
from speechssl.nn.losses import first_is_right
from speechssl.nn.negatives import nearest_negatives, pools_by_group, sample_negatives
from speechssl.nn.transformer import Block, TransformerConfig
from speechssl.nn.variation import variation
from speechssl.objectives.base import LossOutput, Metric, Objective


@dataclass(frozen=True, kw_only=True)
class CPCConfig:
    """The paper's numbers; `heads: transformer` and 128 negatives are those of modified CPC (Riviere et al. 2020)."""

    name: Literal["cpc"] = "cpc"
    num_steps: int = 12
    num_negatives: int = 128
    negatives: Literal["utterance", "speaker", "batch"] = "utterance"  # where they come from
    hard_pool: int = 0  # 0: uniform; n: the num_negatives nearest to the target of n times as many uniform ones
    heads: Literal["linear", "transformer"] = "linear"
    head_heads: int = 8  # attention heads of a Transformer head
    head_ffn_dim: int = 2048  # between its two linear maps, whatever the context's dim

    def __post_init__(self):
        if self.hard_pool < 0:
            raise ValueError("hard_pool must be 0 or more")


class TransformerHead(nn.Module):
    """A one-layer causal Transformer and a linear map: (B, F, D) -> (B, F, C)."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dim_out: int):
        super().__init__()
        config = TransformerConfig(
            dim=dim, num_heads=num_heads, ffn_dim=ffn_dim, num_layers=1, position_groups=1, norm_first=True
        )
        self.block = Block(config, causal=True)
        self.out = nn.Linear(dim, dim_out, bias=False)

    def forward(self, context: Tensor) -> Tensor:
        return self.out(self.block(context))


class CPC(Objective):
    Config = CPCConfig
    takes_channels = True

    def __init__(self, config: CPCConfig, encoder: Encoder):
        super().__init__(config, encoder)
        if not is_causal(encoder.config.context):
            raise UserError(
                "CPC predicts what comes next: choose a context that does not see it, encoder.context.name=recurrent, "
                "or encoder.context.causal=true for a Transformer."
            )
        dim, channels = encoder.dim, encoder.latent_dim
        if config.heads == "linear":
            self.heads = nn.ModuleList([nn.Linear(dim, channels * config.num_steps, bias=False)])  # all W_k in one
        else:
            self.heads = nn.ModuleList(
                TransformerHead(dim, config.head_heads, config.head_ffn_dim, channels) for _ in range(config.num_steps)
            )
        self.min_frames = config.num_steps + 1
        if config.negatives == "speaker":
            self.needs = frozenset({"speakers"})

    def chance(self) -> dict[str, float]:
        candidates = self.config.num_negatives + 1
        return {"infonce": math.log(candidates), "accuracy": 1 / candidates}

    def diagnose(self, numbers: Mapping[str, float]) -> str:
        if numbers.get("variation", 1.0) < 1e-4:
            return (
                "the latents have become the same vector in every frame, so right and wrong answers cannot be told "
                "apart; start again with a lower optim.lr or a longer optim.warmup"
            )
        return ""

    def forward(self, batch: Batch, *, negatives: Tensor | None = None) -> LossOutput:
        """The sum of InfoNCE over frames and steps (paper, equation 4).

        Args:
            batch: waveforms; speakers if negatives come from the same speaker.
            negatives: (B, K, S, N) flattened frames (utterance * F + frame), drawn here if None.

        Raises:
            ValueError: every utterance is shorter than the steps to predict.
        """
        latents, lengths = self.encoder.feature_encoder(batch.waveforms, batch.lengths_or_none)
        projected, _ = self.encoder.project(latents)
        context, _ = self.encoder.context(projected, lengths)
        frames = full_lengths(latents, lengths)
        steps, size = self.config.num_steps, latents.shape[1] - self.config.num_steps
        if size < 1:
            raise ValueError(f"utterances of {latents.shape[1]} frames are too short to predict {steps} steps ahead")
        ahead = torch.arange(1, steps + 1, device=frames.device)[:, None]  # (K, 1)
        future = torch.arange(size, device=frames.device) + ahead  # (K, S): frame t + k
        # As in a batch of its own, an utterance predicts from the frames that have all K steps ahead of them.
        valid = (torch.arange(size, device=frames.device) < frames[:, None, None] - steps).expand(-1, steps, -1)

        predictions = self._predict(context[:, :size])  # (B, K, S, C)
        own = torch.arange(len(frames), device=frames.device)[:, None, None] * latents.shape[1] + future  # (B, K, S)
        if negatives is None:
            negatives = self._draw(batch, frames, latents.shape[1], future)
            if self.config.hard_pool:
                every, rows = latents.flatten(0, 1)[None], negatives.flatten(0, 2)[None]  # one pool: (1, B * F, C)
                nearest = nearest_negatives(every, own.reshape(1, -1), rows, self.config.num_negatives)
                negatives = nearest.view(*own.shape, -1)
        candidates = torch.cat((own[..., None], negatives), -1)  # (B, K, S, N + 1)
        logits = self._scores(predictions, latents, candidates)[valid]  # (targets, N + 1)

        count = valid.sum().float()
        loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="none")
        hits = first_is_right(logits.detach())
        metrics = {
            "infonce": Metric.mean(loss.sum(), count),
            "accuracy": Metric.mean(hits.sum(), count),
            "variation": Metric.mean(*variation(latents, lengths)),
            **self._bounds(loss.detach(), valid),
        }
        return LossOutput(loss.sum(), count, metrics)

    def surprise(self, latents: Tensor, context: Tensor, pool: Tensor, own: Tensor) -> Tensor:
        """How little each frame of one utterance was expected: InfoNCE of what came, against a pool of other frames.

        Args:
            latents: (F, C), and what the context network made of them, context: (F, D).
            pool: (N, C) latents to choose from.
            own: (F,) int64, the place in the pool that holds the frame itself and does not count; -1: none does.

        Returns:
            (F,) nats: the mean over the up to K predictions of a frame; nan for the first, which nothing predicts.
        """
        keys, others = latents.float() / latents.shape[1] ** 0.5, pool.float() / latents.shape[1] ** 0.5
        total, count = keys.new_zeros(len(keys)), keys.new_zeros(len(keys))
        itself = own[:, None] == torch.arange(len(others), device=own.device)  # (F, N)
        for ahead, made in enumerate(self._predict(context[None])[0].float(), start=1):  # (F, C), for frame t + ahead
            made = made[: max(len(keys) - ahead, 0)]
            right = (made * keys[ahead:]).sum(-1, keepdim=True)
            wrong = (made @ others.T).masked_fill(itself[ahead:], -torch.inf)
            total[ahead:] += torch.cat((right, wrong), 1).logsumexp(1) - right[:, 0]
            count[ahead:] += 1
        return total / count

    def _predict(self, context: Tensor) -> Tensor:
        if self.config.heads == "linear":
            return self.heads[0](context).unflatten(-1, (self.config.num_steps, -1)).transpose(1, 2)
        return torch.stack([head(context) for head in self.heads], dim=1)

    def _draw(self, batch: Batch, frames: Tensor, size: int, future: Tensor) -> Tensor:
        """(B, K, S, N) flattened frames, uniform over the pool without the target; n N of them for hard negatives."""
        groups = {"utterance": torch.arange(len(frames), device=frames.device), "speaker": batch.speakers}.get(
            self.config.negatives, torch.zeros_like(frames)
        )
        assert groups is not None  # `needs` was checked
        pools, pool_sizes, place = pools_by_group(groups, frames, size)
        own = place[:, future]  # (B, K, S)
        count = self.config.num_negatives * max(self.config.hard_pool, 1)
        places = sample_negatives(pool_sizes[:, None, None].expand_as(own), own, count)
        places = places.clamp(max=pools.shape[1] - 1)
        return pools.gather(1, places.flatten(1)).view_as(places)

    def _scores(self, predictions: Tensor, latents: Tensor, candidates: Tensor) -> Tensor:
        """z . W_k c / sqrt(C) (equation 3; W_k can absorb the scale) by one product, then a gather of N + 1 scores."""
        with torch.autocast(latents.device.type, enabled=False):
            batch, size, channels = latents.shape
            keys, predictions = latents.float() / channels**0.5, predictions.float()
            if self.config.negatives == "utterance":  # only its own frames can be candidates
                offset = torch.arange(batch, device=keys.device)[:, None, None, None] * size
                scores = torch.einsum("bksc,bfc->bksf", predictions, keys)
                own = (candidates - offset).clamp(0, size - 1)  # an utterance without frames has none of its own
                return scores.gather(3, own)
            scores = torch.einsum("bksc,nc->bksn", predictions, keys.flatten(0, 1))
            return scores.gather(3, candidates)

    def _bounds(self, loss: Tensor, valid: Tensor) -> dict[str, Metric]:
        """log N - loss per step: a lower bound on the mutual information, in nats (paper, equation 5)."""
        step = torch.arange(self.config.num_steps, device=loss.device)[:, None].expand_as(valid)[valid]
        totals = loss.new_zeros(self.config.num_steps).index_add_(0, step, loss)
        counts = loss.new_zeros(self.config.num_steps).index_add_(0, step, torch.ones_like(loss))
        bound = math.log(self.config.num_negatives + 1)
        return {
            f"information/{k + 1}": Metric.mean(bound * counts[k] - totals[k], counts[k])
            for k in range(self.config.num_steps)
        }
