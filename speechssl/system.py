"""What a run sets up on its machine: memory allocation, threads, signals. Each says what it did."""

from __future__ import annotations

import ctypes
import os
import platform
import signal

import torch

from speechssl.errors import REQUEUE, UserError

INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C: saved, and nobody should start the command again


# Kernels that oneDNN, and PyTorch above it, keep for shapes met before: 1024 each if nobody says otherwise. Batches of
# speech seldom have the shape of another, and what is kept lies between the activations' pages, so that the heap grows.
# 128 were kept in the hour of docs/reliability.md; batches of thirty different lengths use about 200.
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}


def keep_memory_pages() -> str:
    """Makes glibc keep freed pages, so that the kernel need not hand out fresh ones for every activation.

    Fresh pages cost a quarter to half of a training step's CPU time otherwise. Applies to this process only, before its
    first computation. `return_memory_pages` is then wanted now and then.
    """
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)
    libc = _glibc()
    if libc is None:
        return ""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    kept = libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, 2**31 - 1)
    return "memory: freed pages are kept (glibc)" if kept else ""


def return_memory_pages() -> None:
    """Gives freed pages back once: batches of ever other shapes leave holes that fit nothing, megabytes a minute."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc" else None


def alone_by_mistake(world: int) -> str:
    """A sentence where `accelerate launch --cpu` was asked for several processes and has started this one alone.

    Without --mpirun_hostfile it does so and says nothing. It does not pass on how many were wanted, but it names a
    place for them to meet, and no launcher has told this process its number.
    """
    meets = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ  # which is accelerate's own
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    if world > 1 or not meets or any(name in os.environ for name in sizes):
        return ""
    return (
        "processes: this one is alone, though accelerate was asked for several; on CPUs it starts them by mpirun only "
        "(--mpirun_hostfile), or use `env ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m speechssl ...`"
    )


class StopSignal:
    """The status to exit with once SIGTERM, SIGUSR1 or SIGINT (Ctrl-C) came, else 0; a second one exits at once."""

    def __init__(self):
        self.status = 0
        self._before = {
            number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        }

    def _handle(self, number: int, frame) -> None:
        if self.status:
            os._exit(128 + number)
        self.status = INTERRUPTED if number == signal.SIGINT else REQUEUE
        os.write(2, b"stopping after this update; a second signal stops at once\n")  # print may be in use

    def restore(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def check_torch() -> None:
    """A torchaudio that does not fit torch fails in the linker, for it declares no bound. Raises UserError instead."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError) as error:
        raise UserError(
            f"torchaudio does not work beside torch {torch.__version__} ({str(error).splitlines()[0]}); "
            "install a matching pair, for example `pip install -U torch torchaudio`."
        ) from None
