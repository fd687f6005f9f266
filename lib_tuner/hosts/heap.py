"""Memory of tensors that glibc keeps for the next update instead of giving it back to the system.

Every update frees all that it computed and asks for as much again; each page then costs a fault and is filled with zeros, 120,000 of them in an update at 512 px,
3% of its time (`benchmarks/README.md`). Within a thread other than the main one glibc still takes pieces from 64 MB on from the system each time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM, MMAP = -1, -3  # mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
NEVER = 2**30  # bytes
USUAL = {MMAP: 2**25, TRIM: 2**26}  # where glibc's own, which grow with what a program frees, end


@contextmanager
def heap_kept() -> Iterator[None]:
    """While it lasts the process keeps what it frees; then all of that goes back. Nothing happens where the C library is another one."""
    libc = _glibc()
    if libc is None:
        yield
        return
    for option, usual in USUAL.items():
        libc.mallopt(option, NEVER) or libc.mallopt(option, usual)  # an older glibc refuses to keep so much, and without a value it would stop at 128 KB
    try:
        yield
    finally:
        for option, value in USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: on Windows there is no such library
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
