"""FSDP: weights, gradients and moments divided among the processes, and whole weights only while an update needs them.

The objective is one unit (`fully_shard` of torch; ZeRO, Rajbhandari et al. 2020): its weights are gathered for a
micro-batch, and its gradients added up and divided again. What is divided is a DTensor; each process holds its rows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from speechssl.objectives import LossOutput

ASKED = "ACCELERATE_USE_FSDP"  # what `accelerate launch --use_fsdp`, or a saved configuration, sets


@contextlib.contextmanager
def asked_for() -> Iterator[bool]:
    """Whether accelerate is configured for FSDP; in the meantime accelerate does not see that it is.

    It would divide on GPUs only, and compute a whole model in bf16, losses and norms included.
    """
    value = os.environ.pop(ASKED, None)
    try:
        yield (value or "").lower() in ("true", "1")
    finally:
        if value is not None:
            os.environ[ASKED] = value


def divide(objective: nn.Module, device: torch.device, processes: int) -> None:
    """Divides the parameters of an objective that is on its device; buffers stay whole on every process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.utils import _pytree as pytree

    if LossOutput not in pytree.SUPPORTED_NODES:
        pytree.register_dataclass(LossOutput)  # torch looks into it for the loss whose gradient it waits for
    fully_shard(objective, mesh=init_device_mesh(device.type, (processes,)))


def whole(tensor: Any) -> Tensor:
    """All of a tensor. Where it is divided, all processes must ask, in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def divided_as(own: Any, value: Tensor) -> Tensor:
    """A whole value, which every process has, divided as `own` is; the value itself where `own` is whole."""
    if not hasattr(own, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
