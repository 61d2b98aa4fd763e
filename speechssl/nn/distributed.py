"""Sums and joins over the processes of a run, with gradients. Shapes: B rows of this process, N of all, D channels.

Without a process group, or with one process, every function gives what it was given. All processes must call them in
the same order, as often; how many rows each holds is free. In validation the processes hold unequal numbers of batches,
so nothing may be called there: objectives couple the processes while they train, and only then.

A process's gradients are those of the *sum of all processes' losses*, which is what the loop divides by the number of
all targets. Every process must therefore return its own share of the loss (mean x B), not the whole of it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


class _Sum(torch.autograd.Function):
    """Every process's loss may depend on the sum, so a summand's gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of all processes' x, which has the same shape on each; differentiable."""
    return _Sum.apply(x) if world_size() > 1 else x


def all_gather(x: Tensor) -> tuple[Tensor, int]:
    """Joins the rows of all processes in the order of their ranks; differentiable.

    Args:
        x: (B, ...), where only B may differ between processes.

    Returns:
        (N, ...), and the number of this process's first row in it.
    """
    if world_size() == 1:
        return x, 0
    sizes = torch.zeros(world_size(), dtype=torch.long, device=x.device)
    sizes[rank()] = len(x)
    dist.all_reduce(sizes)
    counts = sizes.tolist()
    start, end = sum(counts[: rank()]), sum(counts[rank() + 1 :])
    # Rows of the others are zeros here: a sum joins unequal numbers of rows without padding, and brings its gradient.
    around = [x.new_zeros((n, *x.shape[1:])) for n in (start, end)]
    return all_reduce_sum(torch.cat((around[0], x, around[1]))), start


def batch_moments(x: Tensor, *, couple: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance over the rows, and their number: (B, D) -> (D,), (D,), (1,), in float32.

    In two passes, so that a large mean costs no precision.

    Args:
        couple: over the rows of all processes.
    """
    x = x.float()
    sums = torch.cat((x.sum(0), x.new_full((1,), len(x))))
    sums = all_reduce_sum(sums) if couple else sums
    count = sums[-1:].detach().clamp(min=1.0)
    mean = sums[:-1] / count
    squares = (x - mean).square().sum(0)
    squares = all_reduce_sum(squares) if couple else squares
    return mean, squares / count, count


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) by the statistics of all processes' rows: (B, D) -> (B, D) float32.

    Equal to nn.BatchNorm1d in one process, and on any backend to what one process would give for all rows. The rows are
    those of one round: micro-batches that follow one another are normalised each by itself.
    In eval mode the running statistics normalise, and processes need not keep in step.
    """

    running_mean: Tensor  # (D,)
    running_variance: Tensor  # (D,), unbiased

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_variance", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.training:
            mean, variance, count = batch_moments(x, couple=True)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_variance.lerp_(variance * count / (count - 1).clamp(min=1.0), self.momentum)
        else:
            mean, variance = self.running_mean, self.running_variance
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
