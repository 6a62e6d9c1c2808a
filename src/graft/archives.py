"""Unpacking archives that strangers made: whole or not at all, and never outside their folder."""

import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from graft.errors import DataError
from graft.files import telling_write_errors

CHUNK = 1 << 20

LARGEST_RATIO = 100
"""An archive may unpack to this many times its size (photographs hardly grow), plus SMALL_CHANGE."""
SMALL_CHANGE = 1 << 20
MOST_MEMBERS = 2_000_000


def extract(archive: Path, folder: Path) -> None:
    """Unpack a zip or (compressed) tar archive as `folder`, whole or not at all.

    When everything in the archive lies below one folder, that folder becomes `folder`.

    Raises:
        DataError: no archive, damaged, `folder` is there and not empty, or a member that is a link or a device,
            has a name that leaves the folder, or unpacks to more than LARGEST_RATIO times the archive's size.
    """
    with telling_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        parent = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            content = parent / "content"
            content.mkdir()
            _unpack(archive, content)
            tops = [entry for entry in content.iterdir() if entry.name != "__MACOSX"]
            top = tops[0] if len(tops) == 1 and tops[0].is_dir() else content
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
            if folder.exists():
                raise DataError(f"{folder}: is there already; {archive.name} is not unpacked over it.")
            top.rename(folder)
        finally:
            shutil.rmtree(parent, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    allowance = _Allowance(archive, folder)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder, allowance)
        elif tarfile.is_tarfile(archive):
            _unpack_tar(archive, folder, allowance)
        else:
            raise DataError(f"{archive}: neither a zip nor a tar archive.\nRemove it, or fetch it again.")
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise DataError(f"{archive}: damaged ({error}).\nRemove it, or fetch it again.") from error


def _unpack_zip(archive: Path, folder: Path, allowance: "_Allowance") -> None:
    with zipfile.ZipFile(archive) as content:
        for member in content.infolist():
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(archive, member.filename, "is a link or a device")
            place = _place_of(archive, member.filename, folder)
            if member.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                with content.open(member) as source:
                    allowance.write(member.filename, source, place)


def _unpack_tar(archive: Path, folder: Path, allowance: "_Allowance") -> None:
    with tarfile.open(archive) as content:
        for member in content:
            if not (member.isfile() or member.isdir()):
                raise _refused(archive, member.name, "is a link or a device")
            place = _place_of(archive, member.name, folder)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            source = content.extractfile(member)
            assert source is not None
            with source:
                allowance.write(member.name, source, place)


class _Allowance:
    """Writes members until they are more, or larger, than an archive of that size can honestly hold."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive = archive
        self.members = MOST_MEMBERS
        self.bytes = LARGEST_RATIO * archive.stat().st_size + SMALL_CHANGE

    def write(self, name: str, source: IO[bytes], place: Path) -> None:
        """Copy `source` to the new file `place`."""
        self.members -= 1
        if self.members < 0:
            raise _refused(self.archive, name, f"is one of more than {MOST_MEMBERS} files")
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            while chunk := source.read(CHUNK):
                self.bytes -= len(chunk)
                if self.bytes < 0:
                    raise _refused(self.archive, name, f"unpacks to over {LARGEST_RATIO} times the archive's size")
                file.write(chunk)


def _place_of(archive: Path, name: str, folder: Path) -> Path:
    """Where a member goes; refuses a name that leads out of `folder`, on this or any other system."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise _refused(archive, name, "leads out of the folder")
    return folder / path


def _refused(archive: Path, name: str, reason: str) -> DataError:
    return DataError(
        f"{archive}: the archive is not safe to unpack: its member {name!r} {reason}.\n"
        "Nothing was unpacked; fetch the archive from its publisher."
    )
