"""Reading and writing files safely: atomic writes, no blocking reads, valid names, checks of paths."""

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from graft.errors import DataError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

NEVER_OPENED = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
"""File types that can block for ever when they are read; opening a device can also have side effects."""


class NotARegularFile(OSError):
    """A FIFO, socket or device where a file was expected.

    Attributes:
        kind: the type of the file, e.g. "a FIFO".
    """

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(errno.EINVAL, f"not a regular file but {kind}", str(path))
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (Path(self.filename), self.kind)


def why_unreadable(path: Path) -> str | None:
    """Reason why `path` cannot be read, e.g. "no such file"; None if it is a regular file."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except OSError as error:
        return error.strerror or str(error)
    if stat.S_ISDIR(mode):
        return "is a folder"
    return None if stat.S_ISREG(mode) else f"not a regular file but {_kind(mode)}"


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading, so that neither opening nor reading it can block for ever.

    Raises:
        NotARegularFile: a FIFO, socket or device, even one that has just replaced the file.
        OSError: as `open`.
    """

    def without_blocking(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))

    if (kind := _kind(os.stat(path).st_mode)) is not None:
        raise NotARegularFile(path, kind)
    file = open(path, "rb", opener=without_blocking)  # noqa: SIM115
    if (kind := _kind(os.fstat(file.fileno()).st_mode)) is not None:
        file.close()
        raise NotARegularFile(path, kind)
    return file


def _kind(mode: int) -> str | None:
    return NEVER_OPENED.get(stat.S_IFMT(mode))


def read_regular(path: Path, largest: int | None = None) -> bytes:
    """Read a regular file of at most `largest` bytes.

    Raises:
        NotARegularFile: as `open_regular`.
        OSError: as `open`, or the file is larger.
    """
    with open_regular(path) as file:
        content = file.read() if largest is None else file.read(largest + 1)
    if largest is not None and len(content) > largest:
        raise OSError(errno.EFBIG, f"larger than {largest:,} bytes", str(path))
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part of it."""
    with writing_atomically(path) as file:
        file.write(content)


@contextmanager
def writing_atomically(path: Path, *, backup: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `path` that is synced and renamed to it after the block, or removed if it fails.

    Args:
        path: final path of the file.
        backup: path to which an existing file at `path` is renamed; None: it is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    opened = part.open("xb")
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if backup is not None and path.exists():
            path.replace(backup)
        part.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.errno in DISK_FULL:  # has no file name
            error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON in a single write, because several processes may append at once.

    If the last line was truncated, the row begins on a new line.
    """
    with path.open("ab+") as file:
        truncated = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            truncated = file.read(1) != b"\n"
        file.write(("\n" * truncated + json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a file written by `append_json` as (rows, number of damaged lines); ([], 0) if it does not exist."""
    rows, damaged = [], 0
    content = read_regular(path) if path.exists() else b""
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            damaged += 1
    return rows, damaged


def remove_unfinished(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left; the caller must be its only writer."""
    unfinished = re.compile(rf"\.{re.escape(path.name)}\.\d+\.[0-9a-f]{{8}}\.part")
    for part in path.parent.iterdir():
        if unfinished.fullmatch(part.name) and part.is_file():
            part.unlink(missing_ok=True)


_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF, errno.ENOSYS)
"""Error codes of file systems that cannot sync a folder, or do not permit it to this user."""


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk, so that it survives a crash of the machine.

    Raises:
        OSError: the content of a file cannot be written to disk.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows cannot open a folder
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
def writing_folder_atomically(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` after the block, or are removed if it fails."""
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


RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names of devices on Windows, with any extension."""


def safe_name(text: str, most: int = 80, keep: str = "") -> str:
    """Convert `text` to a file name that is valid on any system and safe in a terminal and a shell.

    Used for every file named after untrusted text: a class, a network, a run. Letters, marks and digits of all scripts
    and `-_.` are kept; everything else becomes `_`, and so does a leading dot or hyphen.

    Args:
        text: anything.
        most: largest length in bytes of UTF-8; longer names are truncated.
        keep: further characters that are kept.
    """
    normal = unicodedata.normalize("NFC", text[: 4 * most])
    plain = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "-_." or c in keep else "_" for c in normal)
    cut = plain.encode()[:most].decode(errors="ignore").rstrip(". ")
    if not cut or cut[0] in "-. ":
        cut = f"_{cut[1:]}"
    return f"_{cut}"[:most] if RESERVED.fullmatch(cut) else cut


def require_writable(folder: Path, key: str) -> None:
    """Check that an output folder can be written to, without creating anything.

    Args:
        folder: it need not exist yet.
        key: configuration key that names it, for the message.

    Raises:
        DataError: the folder or a parent is a file, is not writable, or has too long a name.
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


def is_within(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or inside it, with symbolic links followed; neither needs to exist.

    Existing folders are compared by inode too, because a folder can have two paths: a bind mount, or a different case
    on a case-insensitive file system.
    """
    path, folder = (Path(os.path.realpath(each.expanduser())) for each in (path, folder))  # resolve() fails on a loop
    if path.is_relative_to(folder):
        return True
    try:
        target = folder.stat()
    except OSError:
        return False
    return any(_is_same(parent, target) for parent in (path, *path.parents))


def _is_same(path: Path, target: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), target)
    except OSError:
        return False


def damage_in(path: Path) -> str | None:
    """Describe the damage in a file of `torch.save`; None if its checksums are right.

    The file is a zip archive with a CRC-32 of every record, which `torch.load` does not verify. The whole file is
    read, once per process.
    """
    state = path.stat()
    return _damage_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _damage_of(path: Path, size: int, changed: int) -> str | None:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as records:
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                return "its records are compressed, as torch.save never does"
            if sum(record.file_size for record in records.infolist()) > size:
                return "its records are more than the file holds"
            wrong = records.testzip()
    except Exception as error:  # zipfile raises anything for a damaged archive
        return " ".join(str(error).split()) or type(error).__name__
    return None if wrong is None else f"the checksum of {wrong} is wrong"


def sha256(path: Path) -> str:
    """SHA-256 of a file's content in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explaining_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing `path`, such as a full disk, into a DataError with a way out."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}).\nGive a folder with room that you can write to."
        ) from error


def user_name() -> str:
    """Name of the effective user of this process, or the user's number if it has no name."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return str(getattr(os, "geteuid", str)())


def readable_size(size: float) -> str:
    """A number of bytes as text, e.g. "3.9 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
