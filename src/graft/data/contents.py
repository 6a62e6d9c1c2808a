"""Hashes that tell files apart by what is in them, cheap enough for a million files."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.cores import available_cores
from graft.data.packed import Packed

CHUNK = 1024
"""Files for a thread at a time."""

WHOLE = 1 << 15
"""Bytes up to which a file is read as a whole."""

BLOCKS, BLOCK = 4, 1 << 13
"""Of a larger file this many blocks of so many bytes are read: the first, the last and others evenly between."""

ROW = np.dtype([("size", "<i8"), ("changed", "<i8"), ("digest", "V16")])
"""Bytes in a file, its time of change in nanoseconds, and a hash of what was read of it; the size of none is -1."""

Rows = npt.NDArray[np.void]


def contents(paths: Sequence[Path], known: Rows | None = None) -> Rows:
    """A `ROW` for each file.

    Args:
        paths: the files.
        known: what this function returned before for the same paths; files with the same size and time of change as
            then are not read again.
    """
    strings = paths.strings() if isinstance(paths, Packed) else map(str, paths)
    rows = np.zeros(len(paths), ROW)
    rows["size"] = -1
    with ThreadPoolExecutor(min(32, 4 * available_cores()), "contents") as pool:  # they wait for the disk
        jobs = ((start, chunk, known) for start, chunk in _chunks(strings))
        for start, found in pool.map(_rows, jobs):
            rows[start : start + len(found)] = found
    return rows


def _chunks(strings: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    strings, start = iter(strings), 0
    while chunk := list(islice(strings, CHUNK)):
        yield start, chunk
        start += len(chunk)


def _rows(job: tuple[int, list[str], Rows | None]) -> tuple[int, Rows]:
    start, paths, known = job
    rows = np.zeros(len(paths), ROW)
    before = None if known is None else known[start : start + len(paths)]
    for index, path in enumerate(paths):
        rows[index] = _row(path, None if before is None else before[index])
    return start, rows


def _row(path: str, before: np.void | None) -> tuple[int, int, bytes]:
    """(size, time of change, digest) of a file; only regular files are opened, and nothing else is waited for."""
    try:
        if before is not None:
            state = os.stat(path)
            if (state.st_size, state.st_mtime_ns) == (before["size"], before["changed"]):
                return state.st_size, state.st_mtime_ns, before["digest"].tobytes()
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            state = os.fstat(file)
            return state.st_size, state.st_mtime_ns, _digest(file, state)
        finally:
            os.close(file)
    except OSError:
        return -1, 0, bytes(16)


def _digest(file: int, state: os.stat_result) -> bytes:
    if not stat.S_ISREG(state.st_mode):
        return bytes(16)
    if state.st_size <= WHOLE:
        return blake2b(os.read(file, WHOLE), digest_size=16).digest()
    digest = blake2b(digest_size=16)
    for number in range(BLOCKS):
        os.lseek(file, number * (state.st_size - BLOCK) // (BLOCKS - 1), os.SEEK_SET)
        digest.update(os.read(file, BLOCK))
    return digest.digest()
