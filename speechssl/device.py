"""Where a verb computes."""

from __future__ import annotations

import torch

from speechssl.errors import UserError


class DeviceError(UserError):
    """A device that is not there."""


def pick_device(name: str | None) -> torch.device:
    """The device of that name; None: a GPU where there is one. Raises DeviceError."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # torch says "not compiled with CUDA" by an assertion
        raise DeviceError(f"device '{name}' is not there; leave --device out to take what there is.") from None
    return device


def native_precision(device: str) -> str:
    """bf16 where a device ("cuda", "cpu") multiplies in it, else fp32: what is emulated is several times slower."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        can: dict = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.10 cannot say
        native = can.get("avx512_bf16", False) or can.get("amx_bf16", False) or can.get("bf16", False)
    return "bf16" if native else "fp32"
