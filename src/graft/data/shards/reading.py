"""Images of a packed data set, read by byte range from a folder, from a cache of shards, or over the network."""

import copy
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.contents import ROW as CONTENTS
from graft.data.contents import Rows, identity_of
from graft.data.shards.cache import OpenFiles, ShardCache
from graft.data.shards.index import INDEX, Index, read_index
from graft.data.shards.stores import CONNECTIONS, FolderStore, PerProcess, Store
from graft.data.stored import Archive, Blocks
from graft.errors import DataError, UnreadableImage


def new_pool() -> ThreadPoolExecutor:
    """Threads that wait for the network."""
    return ThreadPoolExecutor(CONNECTIONS, "shards")


class PerThread(threading.local):
    """Attributes of each thread, empty in another process."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return PerThread, ()


class Shards(Archive):
    """The images of a packed data set.

    Args:
        index: of the data set.
        store: where its files are.
        cache: keeps shards of a remote store; None: the store is a folder.
        window: number of shards whose images are mixed in training; 0: images are read in any order.
    """

    def __init__(self, index: Index, store: Store, cache: ShardCache | None, window: int = 0) -> None:
        self.index, self.store, self.cache, self.window = index, store, cache, window
        self.faults: Mapping[int, tuple[str, str]] = index.faults
        total = sum(shard.filesize for shard in index.shards)
        self.whole = cache is not None and total <= cache.max_bytes
        """Whether a shard is fetched completely when one of its images is read."""
        self._open = OpenFiles()
        self._ahead = PerThread()
        self._pool = PerProcess(new_pool)

    def read(self, number: int) -> bytes:
        row = self.index.rows[number]
        size, ahead = int(row["size"]), getattr(self._ahead, "images", {}).pop(number, None)
        content = self._read_row(number) if ahead is None else ahead.result()
        if len(content) != size or identity_of(content).rstrip(b"\0") != bytes(row["identity"]):
            reason = "damaged: the checksum is wrong"
            if len(content) != size:
                reason = f"truncated: it ends after {len(content):,} of the {size:,} bytes"
            raise UnreadableImage(self.describe(number), "damaged", f"the shard is {reason}")
        return content

    @contextmanager
    def reading_ahead(self, numbers: Sequence[int]) -> Iterator[None]:
        if self.cache is None or len(numbers) < 2:
            yield
            return
        pool = self._pool.get()
        if self.whole:
            needed = set(self.index.rows["shard"][list(numbers)].tolist())
            missing = [shard for shard in needed if self._open.get(shard) is None]
            list(pool.map(lambda shard: os.close(self._cached(shard)), missing))
            yield
            return
        ahead = self._ahead.images = {number: pool.submit(self._read_row, number) for number in numbers}
        try:
            yield
        finally:
            for future in ahead.values():
                future.cancel()
            self._ahead.images = {}

    def _cached(self, shard: int) -> int:
        """A file descriptor of a shard of a remote store, fetched to the cache unless it is there."""
        assert self.cache is not None
        described = self.index.shards[shard]
        return self.cache.open(self.store, described.url, described.filesize, described.sha256)

    def _read_row(self, number: int) -> bytes:
        row = self.index.rows[number]
        return self._read(int(row["shard"]), int(row["offset"]), int(row["size"]))

    def _read(self, shard: int, start: int, size: int) -> bytes:
        name = self.index.shards[shard].url
        opened = self._open.get(shard)
        if opened is None:
            if isinstance(self.store, FolderStore):
                path = self.store.folder / name
                try:
                    opened = self._open.add(shard, os.open(path, os.O_RDONLY))
                except OSError as error:
                    raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
            elif self.whole:
                opened = self._open.add(shard, self._cached(shard))
            else:
                return self.store.read(name, start, size)
        return opened.read(start, size, self.store.url(name))

    def describe(self, number: int) -> str:
        shard = self.index.shards[int(self.index.rows[number]["shard"])]
        return f"{self.store.url(shard.url)}: {self.index.names[number]}"

    def size(self, number: int) -> int:
        return int(self.index.rows[number]["size"])

    def contents(self, numbers: npt.NDArray[np.int64]) -> Rows:
        found = np.zeros(len(numbers), CONTENTS)
        rows = self.index.rows[numbers]
        found["size"], found["digest"] = rows["size"], rows["digest"]
        return found

    def identities(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bytes_]:
        return np.ascontiguousarray(self.index.rows["identity"][numbers])

    def blocks(self, numbers: npt.NDArray[np.int64]) -> Blocks | None:
        return Blocks(self.index.rows["shard"][numbers].astype(np.int64), self.window) if self.window else None

    def for_training(self) -> "Shards":
        if not self.window:
            return self
        shards = copy.copy(self)
        shards.whole = self.cache is not None
        return shards


def open_shards(store: Store, cache: ShardCache | None) -> Index:
    """The index of a packed data set, and a check of its shards where they are files.

    Raises:
        DataError: the index or a shard is missing, damaged or truncated; names it.
        NotAvailable: it cannot be reached.
    """

    def table(name: str, size: int, digest: str) -> Path:
        if isinstance(store, FolderStore):
            return store.folder / name
        assert cache is not None
        return cache.fetch(store, name, size, digest)

    index = read_index(store.read(INDEX), store.url(INDEX), table)
    if isinstance(store, FolderStore):
        for shard in index.shards:
            _require_size(store.folder / shard.url, shard.filesize)
    return index


def _require_size(file: Path, expected: int) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise DataError(f"{file}: the shard cannot be read ({error.strerror}).") from error
    if size != expected:
        raise DataError(
            f"{file}: the shard is {'truncated' if size < expected else 'another file'}: it has {size:,} bytes, but "
            f"{expected:,} were packed.\nCopy it again, or pack the data set again."
        )
