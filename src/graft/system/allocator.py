"""Settings of glibc's allocator that reuse freed memory instead of returning it to the kernel."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 2**20
REUSED_UP_TO = 192 * MIB
"""Largest block in bytes that is reused; reusing larger ones fragments the memory (VGG16: a fifth more memory)."""
DEFAULT_THRESHOLD = 32 * MIB
"""glibc's own limit after it has freed a block of this size; it returns free memory above twice this size."""

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h


@contextmanager
def reuse_freed_memory(enabled: bool = True) -> Iterator[None]:
    """Let CPU tensors reuse the memory of freed ones while the block runs.

    By default glibc maps a new region for every large block, and the kernel clears it page by page: half the time of a
    training step of VGG16 in fp32 (docs/performance.md). Has no effect with another C library, or if the user has
    set the allocator's limits (GLIBC_TUNABLES, MALLOC_…). On exit the default limits are restored and free memory is
    returned to the kernel.
    """
    library = _glibc() if enabled else None
    if library is None:
        yield
        return
    _set_thresholds(library, REUSED_UP_TO, -1)  # -1: never trim the end of the heap
    try:
        yield
    finally:
        _set_thresholds(library, DEFAULT_THRESHOLD, 2 * DEFAULT_THRESHOLD)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    by_user = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    return None if by_user or platform.libc_ver()[0] != "glibc" else ctypes.CDLL(None)


def _set_thresholds(library: ctypes.CDLL, keep: int, trim: int) -> None:
    library.mallopt(_MMAP_THRESHOLD, keep)
    library.mallopt(_TRIM_THRESHOLD, trim)
