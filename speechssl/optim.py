"""Parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch

from speechssl.config import OptimConfig
from speechssl.objectives import Objective


def build_optimizer(objective: Objective, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (fused) with four groups: encoder and heads, matrices (weight decay) and the rest (none)."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("encoder."), parameter.dim() > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if matrix else 0.0,
                "lr_scale": 1.0 if encoder else config.heads_lr_scale,
            }
            for (encoder, matrix), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def learning_rate(config: OptimConfig, step: int, updates: int) -> float:
    """Learning rate of update `step` (from 0) of `updates`.

    linear: rise, then fall linearly to final_scale. cosine: rise, then half a cosine. tri_stage: rise, hold, then fall
    exponentially to final_scale (0.05 in wav2vec 2.0's fine-tuning).
    """
    warmup, hold = config.warmup * updates, config.hold * updates
    if step < warmup:
        return config.lr * min((step + 1) / warmup, 1.0)
    if config.schedule == "tri_stage" and step < warmup + hold:
        return config.lr
    start = warmup + hold if config.schedule == "tri_stage" else warmup
    progress = min((step - start) / max(updates - start, 1.0), 1.0)
    if config.schedule == "tri_stage":
        return config.lr * math.exp(progress * math.log(max(config.final_scale, 1e-4)))
    fall = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (config.final_scale + (1 - config.final_scale) * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
