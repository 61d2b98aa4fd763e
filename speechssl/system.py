"""What a run sets up on its machine: memory allocation, threads, signals. Each says what it did."""

from __future__ import annotations

import ctypes
import platform
import signal

import torch

from speechssl.errors import UserError

REQUEUE = 75  # exit status after SIGTERM or SIGUSR1 (EX_TEMPFAIL): saved, run the same command again


def keep_memory_pages() -> str:
    """Makes glibc keep freed pages, so that the kernel need not hand out fresh ones for every activation.

    Fresh pages cost a quarter to half of a training step's CPU time otherwise. Applies to this process only.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return ""
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    kept = libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1)
    return "memory: freed pages are kept (glibc)" if kept else ""


class StopSignal:
    """True once SIGTERM or SIGUSR1 came; a second one exits at once."""

    def __init__(self):
        self.received = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def _handle(self, number, frame) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = True

    def __bool__(self) -> bool:
        return self.received


def check_torch() -> None:
    """A torchaudio that does not fit torch fails in the linker, for it declares no bound. Raises UserError instead."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(
            f"torchaudio does not work beside torch {torch.__version__} ({str(error).splitlines()[0]}); "
            "install a matching pair, for example `pip install -U torch torchaudio`."
        ) from None
