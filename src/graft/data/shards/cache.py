"""Files of remote data sets on this machine, within a size limit, shared by all processes."""

import contextlib
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path

from graft.data.shards.stores import Store
from graft.errors import DataError
from graft.system.files import explaining_write_errors
from graft.system.locks import locked

ABANDONED = 3600.0
"""Seconds after which a transfer that has not grown counts as one of a killed process."""

OPEN_FILES = 32
"""Number of shards that each thread keeps open."""


class ShardCache:
    """A folder of files named by their SHA-256, of which the least recently used are removed.

    Processes that need the same file share one transfer. A file that is removed while another process has it open can
    be read by that process to the end of its use.

    Args:
        folder: created with the first file.
        max_bytes: size limit of all files together; those that are being transferred may exceed it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def open(self, store: Store, name: str, size: int, digest: str) -> int:
        """A file descriptor of a file of `store`, fetched unless it is here.

        Raises:
            DataError: its checksum is wrong, or the folder cannot be written.
            NotAvailable: it cannot be reached.
        """
        file = self._file(name, digest)
        while True:  # another process may remove it at any time
            with contextlib.suppress(FileNotFoundError):
                opened = os.open(file, os.O_RDONLY)
                with contextlib.suppress(OSError):
                    os.utime(file)
                return opened
            self.fetch(store, name, size, digest)

    def fetch(self, store: Store, name: str, size: int, digest: str) -> Path:
        """The path of a file of `store`, fetched unless it is here; raises as `open`."""
        file = self._file(name, digest)
        with explaining_write_errors(file):
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / f".{digest[:32]}.fetch.lock", lambda holder: None):
            if not file.is_file():
                self._make_room(size)
                store.fetch(name, file, size, digest)
        return file

    def _file(self, name: str, digest: str) -> Path:
        return self.folder / f"{digest}{Path(name).suffix}"

    def _make_room(self, size: int) -> None:
        """Remove the least recently used files until `size` more bytes are within the limit."""
        with locked(self.folder / ".evict.lock", lambda holder: None):
            files = []
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False):
                        state = entry.stat()
                        files.append((state.st_mtime, state.st_size, entry.path))
            total = sum(length for _, length, _ in files) + size
            for changed, length, path in sorted(files):
                if total <= self.max_bytes:
                    return
                unfinished = path.endswith(".part") and time.time() - changed > ABANDONED
                if path.endswith(".tar") or unfinished:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                    total -= length


class OpenFiles:
    """The files that a thread has open, the least recently used of which are closed; descriptors survive a fork."""

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, key: int) -> "Descriptor | None":
        """The open file of `key`."""
        files = self._files()
        if key in files:
            files.move_to_end(key)
        return files.get(key)

    def add(self, key: int, opened: int) -> "Descriptor":
        """Keep a file descriptor, which is closed later."""
        files = self._files()
        files[key] = Descriptor(opened)
        if len(files) > OPEN_FILES:
            files.popitem(last=False)
        return files[key]

    def _files(self) -> "OrderedDict[int, Descriptor]":
        try:
            files: OrderedDict[int, Descriptor] = self._local.files
        except AttributeError:
            files = self._local.files = OrderedDict()
        return files

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return OpenFiles, ()


class Descriptor:
    """A file descriptor that is closed with its last reference."""

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, start: int, size: int, url: str) -> bytes:
        """`size` bytes from `start` on.

        Raises:
            DataError: the file cannot be read.
        """
        parts, missing = [], size
        try:
            while missing:
                part = os.pread(self.number, missing, start + size - missing)
                if not part:
                    break
                parts.append(part)
                missing -= len(part)
        except OSError as error:
            raise DataError(f"{url}: cannot be read ({error.strerror}).") from error
        return b"".join(parts)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.number)
