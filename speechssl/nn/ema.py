"""The teacher: a moving average of a module that learns (Tarvainen & Valpola 2017)."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn


class Teacher(nn.Module):
    """A float32 copy of `student` that follows it, in eval mode (no dropout, no LayerDrop) and without gradients.

    It is part of the objective's state, so checkpoints hold it and a resume is exact. Call `start` once weights have
    come from another run (`Objective.initialized`), and `update(student, decay)` in `after_step`.
    """

    module: Any  # of the student's class

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(student).float().requires_grad_(False).eval()

    def forward(self, *args, **kwargs):
        """What the averaged module gives, without a graph."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode, whatever the objective around it is told."""
        return super().train(False)

    def start(self, student: nn.Module, taken: Collection[str]) -> None:
        """After weights were taken from another run: that run's teacher stays if all of it came, else it is a copy.

        Args:
            taken: names of the weights taken; the objective has this module as `teacher`.
        """
        if not {f"teacher.{name}" for name in self.state_dict()} <= set(taken):
            self.update(student, 0.0)

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """teacher = decay * teacher + (1 - decay) * student; buffers (running statistics) are copied. decay 0: a copy.

        Args:
            student: the module that was given at the start, or one of the same shape.
        """
        mine, theirs = list(self.module.parameters()), [p.float() for p in student.parameters()]
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)
        for buffer, source in zip(self.module.buffers(), student.buffers(), strict=True):
            buffer.copy_(source)


def linear_decay(step: int, *, start: float, end: float, updates: int) -> float:
    """The decay of update `step`: in a line from start to end over `updates`, then end (data2vec, section 3.3)."""
    return end if step >= updates else start + (end - start) * step / updates
