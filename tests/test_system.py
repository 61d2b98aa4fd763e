"""What a run does to its process's memory."""

import os
import platform
from pathlib import Path

import pytest

from speechssl import system


def resident() -> float:
    """Megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep nothing")
def test_freed_pages_are_kept_and_given_back():
    """Holes between what is still used: 400 MB of them."""
    assert "kept" in system.keep_memory_pages()
    big, small = [], []
    for _ in range(400):
        big.append(bytearray(b"x") * 2**20)
        small.append(bytearray(b"x") * 2000)
    held = resident()
    del big
    kept = resident()
    system.return_memory_pages()
    assert held - kept < 200
    assert kept - resident() > 200
    assert all(block[0] == ord("x") for block in small)


def test_few_kernels_are_kept_unless_somebody_says_otherwise(monkeypatch):
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    system.keep_memory_pages()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == system.KERNEL_CACHES["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
