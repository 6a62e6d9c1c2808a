"""Hashes of the contents of files: of samples of large files, cheap enough for a million, and of whole files."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import file_digest, sha256
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.packed import Packed
from graft.system.cpu import available_cores
from graft.system.files import open_regular

CHUNK = 1024
"""Files per task of the thread pool."""

WHOLE = 1 << 14
"""Largest file, in bytes, that is read completely."""

BLOCKS, BLOCK = 4, 1 << 12
"""Number and size, in bytes, of the evenly spaced blocks that are read of a larger file, first and last included."""

ROW = np.dtype([("size", "<i8"), ("changed", "<i8"), ("digest", "V16")])
"""Size of a file in bytes (-1: it does not exist), modification time in nanoseconds, and hash of the bytes read."""

UNREADABLE = bytes(16)
"""The digest of an unreadable file."""

IDENTITY = np.dtype("S16")
"""The hash of a whole file; null if it cannot be read. NumPy sorts and compares this type."""

Rows = npt.NDArray[np.void]


def contents(paths: Sequence[Path], known: Rows | None = None) -> Rows:
    """Size, modification time and hash of each file, as an array of `ROW` [N].

    Args:
        paths: the files.
        known: an earlier result for the same paths; files whose size and modification time are unchanged are not read
            again.
    """
    strings = paths.strings() if isinstance(paths, Packed) else map(str, paths)
    rows = np.zeros(len(paths), ROW)
    jobs = ((chunk, None if known is None else known[start : start + CHUNK]) for start, chunk in _chunks(strings))
    with ThreadPoolExecutor(min(32, 4 * available_cores()), "contents") as pool:  # they wait for the disk
        for number, found in enumerate(pool.map(_rows, jobs)):
            rows[number * CHUNK : number * CHUNK + len(found)] = found
    return rows


def identities(paths: Sequence[Path]) -> npt.NDArray[np.bytes_]:
    """Hash of the whole content of each file, `IDENTITY` [N]; reads about a gigabyte per second and core."""
    found = np.zeros(len(paths), IDENTITY)
    strings = paths.strings() if isinstance(paths, Packed) else map(str, paths)
    with ThreadPoolExecutor(min(32, 4 * available_cores()), "identities") as pool:  # they wait for the disk
        for start, digests in pool.map(lambda job: (job[0], [*map(_identity, job[1])]), _chunks(strings)):
            found[start : start + len(digests)] = digests
    return found


def _identity(path: str) -> bytes:
    try:
        with open_regular(Path(path)) as file:
            return file_digest(file, sha256).digest()[:16]
    except OSError:
        return UNREADABLE


def _chunks(strings: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    strings, start = iter(strings), 0
    while chunk := list(islice(strings, CHUNK)):
        yield start, chunk
        start += len(chunk)


def _rows(job: tuple[list[str], Rows | None]) -> Rows:
    paths, known = job
    if known is None:
        return np.array([_read(path) for path in paths], ROW)
    rows = known.copy()
    states = [_state(path) for path in paths]
    sizes, times = (np.array(values, "<i8") for values in zip(*states, strict=True))
    for index in np.flatnonzero((sizes != known["size"]) | (times != known["changed"])).tolist():
        rows[index] = _read(paths[index])
    return rows


def _state(path: str) -> tuple[int, int]:
    """(size, modification time in nanoseconds) of a file."""
    try:
        state = os.stat(path)
    except OSError:
        return -1, 0
    return state.st_size, state.st_mtime_ns


def _read(path: str) -> tuple[int, int, bytes]:
    """(size, modification time, digest) of a file; only regular files are read, because others can block."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return *_state(path), UNREADABLE
    try:
        state = os.fstat(file)
        return state.st_size, state.st_mtime_ns, _digest(file, state)
    except OSError:
        return -1, 0, UNREADABLE
    finally:
        os.close(file)


def row_of(content: bytes) -> tuple[int, int, bytes]:
    """Size, modification time 0 and hash of a file whose content is known, equal to those that `contents` reads."""
    if len(content) <= WHOLE:
        return len(content), 0, sha256(content).digest()[:16]
    starts = (number * (len(content) - BLOCK) // (BLOCKS - 1) for number in range(BLOCKS))
    return len(content), 0, sha256(b"".join(content[start : start + BLOCK] for start in starts)).digest()[:16]


def identity_of(content: bytes) -> bytes:
    """The hash that `identities` computes of a file with this content."""
    return sha256(content).digest()[:16]


def _digest(file: int, state: os.stat_result) -> bytes:
    if not stat.S_ISREG(state.st_mode):
        return UNREADABLE
    if state.st_size <= WHOLE:
        return sha256(os.read(file, WHOLE)).digest()[:16]
    digest = sha256()
    for number in range(BLOCKS):
        os.lseek(file, number * (state.st_size - BLOCK) // (BLOCKS - 1), os.SEEK_SET)
        digest.update(os.read(file, BLOCK))
    return digest.digest()[:16]
