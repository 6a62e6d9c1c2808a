"""Files that are whole or not there."""

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
"""File types that can block for ever when they are read, and of which the devices can do anything when opened."""


class NotARegularFile(OSError):
    """A FIFO, socket or device where a file was expected.

    Attributes:
        kind: which, e.g. "a FIFO".
    """

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(errno.EINVAL, f"not a regular file but {kind}", str(path))
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (Path(self.filename), self.kind)


def why_no_file(path: Path) -> str | None:
    """Why nothing can be read from `path`, e.g. "no such file"; None where it is a regular file."""
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
    """Open a file of the user's for reading, so that neither opening nor reading it can block for ever.

    Raises:
        NotARegularFile: a FIFO, socket or device, also one that has just replaced the file.
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
    """The content of a file of the user's, of at most `largest` bytes.

    Raises:
        NotARegularFile, OSError: as `open_regular`; the file is larger.
    """
    with open_regular(path) as file:
        content = file.read() if largest is None else file.read(largest + 1)
    if largest is not None and len(content) > largest:
        raise OSError(errno.EFBIG, f"larger than {largest:,} bytes", str(path))
    return content


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
    except OSError as error:
        if error.errno in DISK_FULL:  # comes without a name
            error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON in one piece, as several processes may do at once; never to a line that was cut short."""
    with path.open("ab+") as file:
        cut_short = False
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            cut_short = file.read(1) != b"\n"
        file.write(("\n" * cut_short + json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(rows, number of lines that are damaged) of a file that `append_json` wrote; none where there is no such file."""
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


RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows, with any ending."""


def safe_name(text: str, most: int = 80, keep: str = "") -> str:
    """`text` as the name of a file on any system: one component of a path, which no terminal or shell misreads.

    For every file that is named by what another file says: a class, a network, a run. Letters, marks and digits of
    all scripts stay, and `-_.`; everything else becomes `_`, a dot or hyphen at the beginning too.

    Args:
        text: anything.
        most: bytes in UTF-8; what is longer is cut.
        keep: other characters that stay.
    """
    normal = unicodedata.normalize("NFC", text[: 4 * most])
    plain = "".join(c if unicodedata.category(c)[0] in "LMN" or c in "-_." or c in keep else "_" for c in normal)
    cut = plain.encode()[:most].decode(errors="ignore").rstrip(". ")
    if not cut or cut[0] in "-. ":
        cut = f"_{cut[1:]}"
    return f"_{cut}"[:most] if RESERVED.fullmatch(cut) else cut


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
        with open_regular(path) as file, zipfile.ZipFile(file) as records:
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                return "its records are compressed, as torch.save never does"
            if sum(record.file_size for record in records.infolist()) > size:
                return "its records are more than the file holds"
            wrong = records.testzip()
    except Exception as error:  # of a damaged archive zipfile raises anything
        return " ".join(str(error).split()) or type(error).__name__
    return None if wrong is None else f"the checksum of {wrong} is wrong"


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex."""
    with open_regular(path) as file:
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
