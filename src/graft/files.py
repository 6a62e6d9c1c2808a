"""Files that are whole or not there."""

import errno
import hashlib
import os
import re
import secrets
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    opened = part.open("xb")
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if former is not None and path.exists():
            path.replace(former)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of writing `path` atomically; for who alone writes it."""
    unfinished = re.compile(rf"\.{re.escape(path.name)}\.\d+\.[0-9a-f]{{8}}\.part")
    for part in path.parent.iterdir():
        if unfinished.fullmatch(part.name) and part.is_file():
            part.unlink(missing_ok=True)


_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF, errno.ENOSYS)
"""What file systems answer that cannot sync a folder, or do not let this user."""


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a crash of the machine.

    Raises:
        OSError: a file's content cannot be brought to the disk.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # which cannot open one
        return
    try:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if not is_folder or error.errno not in _NO_SYNC:
            raise


@contextmanager
def folder_in_place(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` whose files move into it when the block is done, and go when it fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part") as part:
        yield Path(part)
        folder.mkdir(exist_ok=True)
        files = sorted(Path(part).iterdir())
        for file in files:
            sync(file)
        for file in files:
            file.replace(folder / file.name)
        sync(folder)
    sync(folder.parent)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or below it, links followed; neither needs to exist.

    Folders that exist are compared by what they are too, because one can have two names: a bind mount, or other letter
    case on a file system that ignores it.
    """
    path, folder = (Path(os.path.realpath(each.expanduser())) for each in (path, folder))  # resolve() fails on a loop
    if path.is_relative_to(folder):
        return True
    try:
        wanted = folder.stat()
    except OSError:
        return False
    return any(_is(above, wanted) for above in (path, *path.parents))


def _is(path: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), wanted)
    except OSError:
        return False


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


def user_name() -> str:
    """Name of the user whose permissions this process has; the number of one without a name."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return str(getattr(os, "geteuid", str)())
