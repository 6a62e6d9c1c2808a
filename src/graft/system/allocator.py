"""Settings of glibc's allocator that reuse freed memory instead of returning it to the kernel."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 2**20
KEPT = 192 * MIB
"""Blocks up to this size are reused. Reusing larger ones fragments the heap: VGG16 then needs a fifth more memory."""
DEFAULT = 32 * MIB
"""glibc's own limit, once it has seen blocks of this size; it trims free memory above twice as much."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h


@contextmanager
def freed_memory_kept(enabled: bool = True) -> Iterator[None]:
    """Let tensors on the CPU reuse the memory of freed ones.

    By default glibc maps a new region for every large block, and the kernel clears it page by page: half the time of a
    training step of VGG16 in fp32 (docs/performance.md). Has no effect with another C library, or where the user has
    set the allocator's limits (GLIBC_TUNABLES, MALLOC_…). On exit the default limits return, and free memory is
    returned to the kernel.
    """
    library = _glibc() if enabled else None
    if library is None:
        yield
        return
    _limit(library, KEPT, -1)  # -1: never trim the end of the heap
    try:
        yield
    finally:
        _limit(library, DEFAULT, 2 * DEFAULT)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    by_user = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    return None if by_user or platform.libc_ver()[0] != "glibc" else ctypes.CDLL(None)


def _limit(library: ctypes.CDLL, keep: int, trim: int) -> None:
    library.mallopt(_MMAP_THRESHOLD, keep)
    library.mallopt(_TRIM_THRESHOLD, trim)
