"""Memory that a training step frees is kept for the next one, instead of going back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Numbers of the options in glibc's malloc.h."""
_SETTINGS = ("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed, for the rest of the process.

    By default every block of more than a few MiB is mapped anew, and the system clears each of its pages on first
    use. Activations and gradients are such blocks, and of the same sizes at every step. The price is
    that the process stays as large as it once was.

    Returns:
        Whether it was told: not without glibc, and not where the environment sets up an allocator of its own
        (``MALLOC_...``, ``LD_PRELOAD``, ``GLIBC_TUNABLES``).
    """
    libc = None if any(name.startswith(_SETTINGS) for name in os.environ) else _glibc()
    if libc is None:
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    told = [bool(libc.mallopt(option, value)) for option, value in options.items()]
    return all(told)


def give_back_freed_memory() -> bool:
    """Have glibc's malloc give back to the system what has been freed so far, whether it was told to keep it or not.

    Returns:
        Whether there was any; never without glibc.
    """
    libc = _glibc()
    return libc is not None and bool(libc.malloc_trim(0))


def _glibc() -> Any:
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
