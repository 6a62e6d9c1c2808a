"""Files that are whole or not there."""

import errno
import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from graft.errors import DataError


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, sync, rename: a reader sees the old file or the new one, never half of one."""
    with writing_atomically(path) as file:
        file.write(content)


@contextmanager
def writing_atomically(path: Path, *, former: Path | None = None) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its name when the block is done, and is removed when it fails.

    Args:
        path: the file.
        former: the name that what was at `path` has from then on; None: it is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if former is not None and path.exists():
            path.replace(former)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_in_place(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` whose files move into it when the block is done, and go when it fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part") as part:
        yield Path(part)
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(part).iterdir()):
            file.replace(folder / file.name)


def require_writable(folder: Path, key: str) -> None:
    """Refuse an output folder that cannot be written to; creates nothing.

    Args:
        folder: it need not exist yet.
        key: where it was configured, for the message.

    Raises:
        DataError: it, or a folder above it, is a file, may not be written to, or has too long a name.
    """
    folder = folder.expanduser()
    try:
        with suppress(FileNotFoundError):
            folder.lstat()
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise DataError(f"{key}={folder}: cannot be written ({error.strerror}).\nGive another {key}=….") from error


def lies_in(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or below it, links followed."""
    return path.expanduser().resolve().is_relative_to(folder.expanduser().resolve())


def damage_of(path: Path) -> str | None:
    """What is wrong with a file of `torch.save`, as its checksums tell; None where it is whole.

    It is a zip archive with a CRC-32 of every record, which `torch.load` does not look at. The whole file is read,
    once in a process.
    """
    state = path.stat()
    return _damage_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _damage_of(path: Path, size: int, changed: int) -> str | None:
    try:
        with zipfile.ZipFile(path) as records:
            wrong = records.testzip()
    except Exception as error:  # of a damaged archive zipfile raises anything
        return " ".join(str(error).split()) or type(error).__name__
    return None if wrong is None else f"the checksum of {wrong} is wrong"


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def telling_write_errors(path: Path) -> Iterator[None]:
    """Turn a disk that is full or may not be written into a message."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}).\nGive a folder with room that you can write to."
        ) from error
