"""Freed memory that is kept for the next step, instead of going back to the kernel."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 2**20
KEPT = 192 * MIB
"""Blocks up to this size are kept: with larger ones the heap breaks up, and VGG16 needs a fifth more than by hand."""
USUAL = 32 * MIB
"""glibc keeps blocks up to this size once it has seen such, and returns what is free above twice as much."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h


@contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Inside, tensors on the CPU reuse the memory of those freed before them.

    glibc maps every large block anew, and the kernel clears it page by page: half the time of a training step of VGG16
    in fp32 (docs/performance.md). Nothing changes where the C library is another one, or its user has set its limits
    (GLIBC_TUNABLES, MALLOC_…). At the end the limits are glibc's own again, and what is free goes back.
    """
    library = _glibc() if wanted else None
    if library is None:
        yield
        return
    _limit(library, KEPT, -1)  # -1: the end of the heap never goes back
    try:
        yield
    finally:
        _limit(library, USUAL, 2 * USUAL)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    by_user = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    return None if by_user or platform.libc_ver()[0] != "glibc" else ctypes.CDLL(None)


def _limit(library: ctypes.CDLL, keep: int, trim: int) -> None:
    library.mallopt(_MMAP_THRESHOLD, keep)
    library.mallopt(_TRIM_THRESHOLD, trim)
