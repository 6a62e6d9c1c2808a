"""Features on disk: written once by whoever comes first, shared by all runs, what was used longest ago makes room."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import ReadWriteLock, Timeout
from torch import Tensor

from graft.data.features import Layout

log = logging.getLogger("graft")

FORMAT = 1
CHUNK = 1 << 22
POLL_SECONDS = 0.2
META = "meta.json"


class NoRoom(OSError):
    """The features do not fit; the message says into what."""


@dataclass(frozen=True)
class Wanted:
    """Features asked of the store.

    Attributes:
        key: plain values that decide every byte.
        layouts: of each tensor.
        count: number of rows of each.
        batches: makes them, in order; called only when they are not there.
    """

    key: Mapping[str, Any]
    layouts: Sequence[Layout]
    count: int
    batches: Callable[[], Generator[tuple[Tensor, ...], None, None]]

    @property
    def digest(self) -> str:
        """The name of its folder: SHA-256 of the key."""
        return hashlib.sha256(json.dumps([FORMAT, self.key], sort_keys=True).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.count * sum(layout.row_bytes for layout in self.layouts)


@dataclass(frozen=True)
class Stored:
    """Features in the store, locked against removal.

    Attributes:
        files: one for each tensor.
        computed: whether this run made them.
        seconds: how long that took whoever made them.
    """

    files: tuple[Path, ...]
    computed: bool
    seconds: float


class FeatureStore:
    """A folder of features, each in a folder of its own: the rows of each tensor in a file, and `meta.json`.

    A folder gets its name when it is whole. Its lock is held for writing by the process that computes it, and for
    reading by every run that uses it.

    Args:
        folder: made when it is needed.
        max_bytes: the features used longest ago are removed to stay below, but none that a run is using.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._held: dict[str, ReadWriteLock] = {}

    def obtain(self, wanted: Sequence[Wanted]) -> list[Stored]:
        """All that is `wanted`: what is there, what this process computes, and what others compute meanwhile.

        Raises:
            NoRoom: it does not fit, and nothing more can be removed.
            OSError: it cannot be written or read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Stored] = {}
        said = False
        while missing := [one for one in wanted if one.digest not in found]:
            for one in missing:
                with contextlib.suppress(Timeout):
                    found[one.digest] = self._take(one)
            if all(one.digest not in found for one in missing):
                if not said:
                    log.info("cache  waiting for another run that computes the same features …")
                said = True
                time.sleep(POLL_SECONDS)
        return [found[one.digest] for one in wanted]

    def close(self) -> None:
        """Let go of everything: from now on it may be removed."""
        for lock in self._held.values():
            lock.release(force=True)
        self._held.clear()

    def _take(self, wanted: Wanted) -> Stored:
        """One entry, computed if need be. Raises filelock.Timeout while another process writes it."""
        name, place = wanted.digest, self.folder / wanted.digest
        computed = False
        while True:
            lock = self._held.get(name) or self._lock(name)
            if name not in self._held:
                lock.acquire_read(timeout=0)
            meta = _read(place, wanted, thoroughly=not computed)
            if meta is not None:
                self._held[name] = lock
                os.utime(place / META)
                return Stored(tuple(_files(place, wanted)), computed, meta["seconds"])
            self._held.pop(name, None)
            lock.release()
            lock.acquire_write(timeout=0)
            try:
                if place.exists() and _read(place, wanted) is None:
                    log.info("cache  %s is damaged; it is computed anew", place)
                    shutil.rmtree(place)
                if not place.exists():
                    self._write(place, wanted)
                    computed = True
            finally:
                lock.release()

    def _lock(self, name: str) -> ReadWriteLock:
        return ReadWriteLock(self.folder / f".{name}.lock", is_singleton=False)

    def _write(self, place: Path, wanted: Wanted) -> None:
        self._make_room(wanted.bytes)
        part = place.with_name(f"{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        started = time.perf_counter()
        try:
            sums = _write_rows(part, wanted)
            meta = {
                "key": dict(wanted.key),
                "count": wanted.count,
                "layouts": [layout.to_dict() for layout in wanted.layouts],
                "crc32": sums,
                "seconds": round(time.perf_counter() - started, 2),
            }
            (part / META).write_text(json.dumps(meta, indent=2) + "\n")
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _make_room(self, needed: int) -> None:
        entries = sorted(self._entries(), key=lambda entry: entry[1])
        total = sum(size for _, _, size in entries)
        for folder, _, size in entries:
            if total + needed <= self.max_bytes:
                break
            total -= size if self._remove(folder) else 0
        if total + needed > self.max_bytes:
            raise NoRoom(f"cache.max_gb={self.max_bytes / 2**30:g}: {self.folder} is full of what other runs are using")
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise NoRoom(f"{self.folder} has {in_words(free)} free, and {in_words(needed)} are needed")

    def _entries(self) -> Iterator[tuple[Path, float, int]]:
        """(folder, time of last use, bytes) of all features, half-written ones too."""
        for folder in self.folder.iterdir():
            with contextlib.suppress(OSError):  # removed by another run meanwhile
                if folder.is_dir():
                    used = (folder / META if (folder / META).exists() else folder).stat().st_mtime
                    yield folder, used, sum(file.stat().st_size for file in folder.iterdir())

    def _remove(self, folder: Path) -> bool:
        """Remove an entry unless a run is using or writing it."""
        name = folder.name.removesuffix(".part")
        if name in self._held:
            return False
        lock = self._lock(name)
        try:
            lock.acquire_write(timeout=0)
        except Timeout:
            return False
        try:
            shutil.rmtree(folder)
        finally:
            lock.release()
        return True


def _files(place: Path, wanted: Wanted) -> list[Path]:
    return [place / f"{number}.bin" for number, _ in enumerate(wanted.layouts)]


def _write_rows(place: Path, wanted: Wanted) -> list[int]:
    """Write every batch as it comes; returns the CRC-32 of each file."""
    sums = [0] * len(wanted.layouts)
    rows = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(file.open("wb")) for file in _files(place, wanted)]
        for file, layout in zip(files, wanted.layouts, strict=True):
            file.truncate(wanted.count * layout.row_bytes)  # so that others count the room as taken
        for batch in stack.enter_context(contextlib.closing(wanted.batches())):
            rows += len(batch[0])
            for number, (file, layout, tensor) in enumerate(zip(files, wanted.layouts, batch, strict=True)):
                content = layout.to_bytes(tensor)
                sums[number] = zlib.crc32(content, sums[number])
                file.write(content)
    if rows != wanted.count:
        raise RuntimeError(f"{rows} rows of features for {wanted.count} images")
    return sums


def _read(place: Path, wanted: Wanted, *, thoroughly: bool = True) -> dict[str, Any] | None:
    """What is said of an entry if it is there and whole; `thoroughly`: its content is compared with its checksum."""
    try:
        meta: dict[str, Any] = json.loads((place / META).read_text())
        expected = [wanted.count, [layout.to_dict() for layout in wanted.layouts]]
        if [meta["count"], meta["layouts"]] != expected:
            return None
        for file, layout, checksum in zip(_files(place, wanted), wanted.layouts, meta["crc32"], strict=True):
            if file.stat().st_size != wanted.count * layout.row_bytes:
                return None
            if thoroughly and _crc32(file) != checksum:
                return None
        float(meta["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def in_words(size: float) -> str:
    """A number of bytes for people: "3.9 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
