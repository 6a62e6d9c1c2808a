"""Unpacks untrusted archives: completely or not at all, and never outside the target folder."""

import bz2
import gzip
import io
import itertools
import lzma
import math
import os
import re
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from graft.errors import DataError
from graft.system.files import explaining_write_errors

CHUNK = 1 << 20

MAX_RATIO = 100
"""Largest ratio of unpacked to packed size (photographs hardly compress), in addition to SLACK bytes."""
SLACK = 1 << 20
MAX_MEMBERS = 2_000_000
"""Largest number of files and folders in an archive."""
MAX_FOLDERS = 100_000
MAX_NAME = 1024
"""Largest number of characters in a member's path."""
MAX_DEPTH = 64
"""Largest number of folders in a member's path."""
MAX_HEADER = 1 << 20
"""Largest number of header bytes of a member of a tar archive."""
LOCAL_HEADER = 30
"""Smallest number of header bytes before a member of a zip archive."""
TEMPORARY = "graft-"
"""Part of the names of temporary folders: `.NAME.graft-XXXXXXXX.partial`."""

COMPRESSIONS: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
"""Leading bytes of a compressed tar archive -> class that decompresses it."""


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or (compressed) tar archive as `folder`, completely or not at all.

    The archive is unpacked into a temporary folder next to `folder`, which is then renamed. If it contains a single
    top-level folder, that folder becomes `folder`.

    Raises:
        DataError: the file is not an archive or is damaged; `folder` is not empty; or a member is a link, a device or
            sparse, appears twice, has a path outside of the folder, has too large a header, or exceeds a limit.
    """
    with explaining_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}.{TEMPORARY}"
        parent = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=folder.parent))
        try:
            content = parent / "content"
            content.mkdir()
            _unpack(archive, content)
            tops = [entry for entry in content.iterdir() if entry.name != "__MACOSX"]
            top = tops[0] if len(tops) == 1 and tops[0].is_dir() else content
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            if folder.exists():
                raise DataError(f"{folder}: exists already, so {archive.name} is not unpacked there.")
            top.rename(folder)
        finally:
            shutil.rmtree(parent, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """Temporary folders that killed calls of `extract` for `folder` left; the caller must hold the lock of `folder`.

    Only private folders of this user with a name that `extract` generates are included.
    """
    unfinished = re.compile(rf"\.{re.escape(folder.name)}\.{TEMPORARY}[a-z0-9_]{{8}}\.partial")
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    return [path for path in siblings if unfinished.fullmatch(path.name) and _is_private(path.lstat())]


def _is_private(state: os.stat_result) -> bool:
    """Whether a folder has the owner and mode that `tempfile.mkdtemp` gives."""
    ours = not hasattr(os, "geteuid") or state.st_uid == os.geteuid()
    return ours and stat.S_ISDIR(state.st_mode) and state.st_mode & 0o777 == 0o700


def _unpack(archive: Path, folder: Path) -> None:
    destination = _Destination(archive, folder)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, destination)
        elif not _unpack_tar(archive, destination):
            raise DataError(f"{archive}: neither a zip nor a tar archive.\nRemove it, or download it again.")
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        OSError,  # from reading; errors of writing are DataErrors already
        EOFError,
        RuntimeError,
        NotImplementedError,
        ValueError,
    ) as error:
        raise DataError(f"{archive}: damaged ({error}).\nRemove it, or download it again.") from error


def _unpack_zip(archive: Path, destination: "_Destination") -> None:
    with zipfile.ZipFile(archive) as content:
        members = content.infolist()
        _refuse_overlaps(archive, members)
        for member in members:
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refusal(archive, member.filename, "is a link or a device")
            if member.is_dir():
                destination.make_folder(member.filename)
                continue
            with content.open(member) as source:
                destination.write(member.filename, source, member.file_size)


def _refuse_overlaps(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes, which let a small archive unpack to a huge size (Fifield 2019)."""
    in_order = sorted(members, key=lambda member: member.header_offset)
    for member, following in itertools.pairwise(in_order):
        if member.header_offset + LOCAL_HEADER + member.compress_size > following.header_offset:
            raise _refusal(archive, following.filename, f"overlaps {_escaped(member.filename)}")


def _unpack_tar(archive: Path, destination: "_Destination") -> bool:
    """Unpack a tar archive; returns False if the file is not one."""
    with archive.open("rb") as file:
        magic = file.read(max(map(len, COMPRESSIONS)))
    opener = next((opener for start, opener in COMPRESSIONS.items() if magic.startswith(start)), None)
    with archive.open("rb") if opener is None else opener(archive) as stream:
        reader = _TarReader(archive, stream, destination.bytes_left)
        try:
            content = tarfile.open(fileobj=reader, mode="r:")  # noqa: SIM115
        except tarfile.ReadError:
            return False
        with content:
            while (member := content.next()) is not None:
                content.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all members in memory
                if not (member.isfile() or member.isdir()) or member.size < 0:
                    raise _refusal(archive, member.name, "is a link or a device")
                if member.issparse():
                    raise _refusal(archive, member.name, "is a sparse file")
                if member.isdir():
                    destination.make_folder(member.name)
                else:
                    source = content.extractfile(member)
                    assert source is not None
                    reader.header_left = math.inf
                    with source:
                        destination.write(member.name, source, member.size)
                reader.header_left = MAX_HEADER
    return True


class _TarReader(io.RawIOBase):
    """Decompressed bytes of a tar archive, for tarfile; limits reads and seeks, which follow untrusted headers.

    Args:
        archive: path for messages.
        stream: decompressed content.
        limit: largest number of decompressed bytes.

    Attributes:
        header_left: number of bytes that may be read before the content of the next member.
    """

    def __init__(self, archive: Path, stream: io.BufferedIOBase, limit: int) -> None:
        super().__init__()
        self.archive, self.stream, self.limit = archive, stream, limit
        self.header_left: float = MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self.header_left:
            raise _unsafe(self.archive, f"a header of {size:,} bytes after the first {self.tell():,}")
        self.header_left -= size
        self._check_size(self.tell() + size)
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._check_size(offset)
        return self.stream.seek(offset, whence)

    def _check_size(self, offset: int) -> None:
        if offset > self.limit:
            raise _unsafe(self.archive, f"it decompresses to over {MAX_RATIO} times its size")

    def tell(self) -> int:
        return self.stream.tell()


class _Destination:
    """Writes members into `folder` and refuses more, or larger ones, than a genuine archive of this size contains."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.bytes_left = MAX_RATIO * archive.stat().st_size + SLACK
        self.members = 0
        self.folders = {PurePosixPath()}
        self.spellings: dict[str, str] | None = {} if _folds_case(folder) else None

    def make_folder(self, name: str) -> None:
        """Create the folder of an entry."""
        self._make(self._checked_path(name), name)

    def write(self, name: str, source: IO[bytes], size: int) -> None:
        """Copy `source`, which must have `size` bytes, to a new file."""
        path = self._checked_path(name)
        self._make(path.parent, name)
        target, written = self.folder / path, 0
        with explaining_write_errors(target):
            try:
                file = target.open("xb")
            except (FileExistsError, IsADirectoryError):
                raise _refusal(self.archive, name, "appears twice") from None
            with file:
                while chunk := self._read(name, source):
                    written += len(chunk)
                    file.write(chunk)
        if written != size:
            raise ValueError(f"{_escaped(name)} has {written:,} of {size:,} bytes")

    def _read(self, name: str, source: IO[bytes]) -> bytes:
        try:
            chunk = source.read(CHUNK)
        except OSError as error:
            raise ValueError(str(error)) from error  # an error of reading, not of writing
        self.bytes_left -= len(chunk)
        if self.bytes_left < 0:
            raise _refusal(self.archive, name, f"unpacks to over {MAX_RATIO} times the archive's size")
        return chunk

    def _checked_path(self, name: str) -> PurePosixPath:
        """Relative path of a member; refuses one that leads out of the folder on any operating system."""
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise _refusal(self.archive, name, f"is one of more than {MAX_MEMBERS:,}")
        if len(name) > MAX_NAME or "\0" in name:
            raise _refusal(self.archive, name, f"has a name of over {MAX_NAME} characters, or a NUL in it")
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
            raise _refusal(self.archive, name, "leads out of the folder")
        if len(path.parts) > MAX_DEPTH:
            raise _refusal(self.archive, name, f"is nested more than {MAX_DEPTH} folders deep")
        return path

    def _make(self, path: PurePosixPath, name: str) -> None:
        """Create a folder and its parents, and count them."""
        for folder in (*reversed(path.parents), path):
            if folder in self.folders:
                continue
            self.folders.add(folder)
            if len(self.folders) > MAX_FOLDERS:
                raise _refusal(self.archive, name, f"needs one of more than {MAX_FOLDERS:,} folders")
            self._require_one_spelling(folder, name)
            with explaining_write_errors(self.folder / folder):
                try:
                    (self.folder / folder).mkdir()
                except FileExistsError:
                    raise _refusal(self.archive, name, "is a file and a folder") from None

    def _require_one_spelling(self, folder: PurePosixPath, name: str) -> None:
        """On a case-insensitive file system, refuse folders that differ only in case; mode "xb" refuses such files."""
        if self.spellings is not None:
            folded = unicodedata.normalize("NFC", str(folder)).casefold()
            if self.spellings.setdefault(folded, str(folder)) != str(folder):
                raise _refusal(self.archive, name, "differs from another only in case, which this file system ignores")


def _folds_case(folder: Path) -> bool:
    """Whether the file system takes `A` and `a` for one name."""
    return folder.with_name(folder.name.swapcase()).exists()


def _escaped(name: str) -> str:
    """A name, in printable characters and of bearable length."""
    return repr(name if len(name) <= 100 else name[:99] + "…")


def _refusal(archive: Path, name: str, reason: str) -> DataError:
    return _unsafe(archive, f"its member {_escaped(name)} {reason}")


def _unsafe(archive: Path, reason: str) -> DataError:
    return DataError(
        f"{archive}: the archive is not safe to unpack: {reason}.\n"
        "Nothing was unpacked; fetch the archive from its publisher."
    )
