"""Malicious and damaged archives are refused."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graft.errors import DataError
from graft.system import archives
from graft.system.archives import extract


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def tar_with(path: Path, *members: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if member.isfile():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_with(path: Path, names: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def header(name: str, kind: bytes = b"0", size: int = 0) -> bytes:
    """A tar header as somebody else may write it; tarfile would write none with such a size."""
    info = tarfile.TarInfo(name)
    raw = bytearray(info.tobuf())
    raw[124:136] = (
        b"%011o\0" % size
        if 0 <= size < 8**11
        else (b"\x80" if size > 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    )
    raw[156:157] = kind
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def pax(key: str, value: str) -> tuple[bytes, bytes]:
    """The extended header that gives the next member a `key`."""
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    record = f"{length} {key}={value}\n".encode()
    assert len(record) == length
    return header("pax", b"x", length), record + b"\0" * (-length % 512)


def raw_tar(path: Path, *blocks: bytes) -> Path:
    with gzip.open(path, "wb") as file:
        for block in blocks:
            file.write(block)
        file.write(b"\0" * 1024)
    return path


def overlapping(path: Path) -> Path:
    """Two entries of a zip that share their bytes."""
    zip_with(path, {"set/a": os.urandom(100), "set/b": os.urandom(100)})
    content = path.read_bytes()
    first, second = content.index(b"PK\1\2"), content.rindex(b"PK\1\2")
    directory = bytearray(content)
    directory[second + 20 : second + 28] = content[first + 20 : first + 28]
    directory[second + 42 : second + 46] = struct.pack("<I", 10)
    path.write_bytes(directory)
    return path


HARMFUL: dict[str, Callable[[Path], Path]] = {
    "tar that climbs": lambda p: tar_with(p, member("set/ok"), member("set/../../out")),
    "tar that is absolute": lambda p: tar_with(p, member("set/ok"), member("/tmp/graft_out")),
    "tar with a link out": lambda p: tar_with(p, member("set/out", tarfile.SYMTYPE, "../.."), member("set/out/out")),
    "tar with a hard link": lambda p: tar_with(p, member("set/out", tarfile.LNKTYPE, "/etc/passwd")),
    "tar with a device": lambda p: tar_with(p, member("set/null", tarfile.CHRTYPE)),
    "tar with a pipe": lambda p: tar_with(p, member("set/pipe", tarfile.FIFOTYPE)),
    "tar bomb": lambda p: tar_with(p, member("set/zeros"), content=b"\0" * 8_000_000),
    "zip that climbs": lambda p: zip_with(p, {"set/ok": b"", "set/../../out": b"x"}),
    "zip that is absolute": lambda p: zip_with(p, {"set/ok": b"", "/tmp/graft_out": b"x"}),
    "zip of another system": lambda p: zip_with(p, {"set/ok": b"", "..\\..\\out": b"x"}),
    "zip with a drive": lambda p: zip_with(p, {"C:/out": b"x"}),
    "zip with a link out": lambda p: zip_with(p, {"set/out": b"../.."}, stat.S_IFLNK | 0o777),
    "tar with a sparse file": lambda p: raw_tar(p, header("set/sparse", b"S", 512), b"\0" * 512),
    "tar with a negative size": lambda p: raw_tar(p, header("set/x", size=-512)),
    "tar with a pax size that is negative": lambda p: raw_tar(p, *pax("size", "-1024"), header("set/x")),
    "tar with a name without end": lambda p: tar_with(p, member("set/" + "a/" * 600)),
    "tar with a deep name": lambda p: tar_with(p, member("set/" + "a/" * 100)),
    "tar with a NUL in a name": lambda p: raw_tar(p, *pax("path", "set/a\0b"), header("set/x")),
    "tar with the same name twice": lambda p: tar_with(p, member("set/x"), member("set/./x")),
    "tar with a file that is a folder too": lambda p: tar_with(p, member("set/x"), member("set/x/y")),
    "tar with a folder that is a file too": lambda p: tar_with(p, member("set/x", tarfile.DIRTYPE), member("set/x")),
    "zip of entries that overlap": lambda p: overlapping(p),
    "zip bomb": lambda p: zip_with(p, {"set/zeros": b"\0" * 8_000_000}),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_archive_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    archive = HARMFUL[kind](tmp_path / "harm")
    with pytest.raises(DataError, match=r"is not safe to unpack: it(s member)?") as raised:
        extract(archive, inside / "set")
    assert "harm" in str(raised.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "harm"]
    assert not Path("/tmp/graft_out").exists()


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    for ending in ("", "/"):
        archive = zip_with(tmp_path / "x.zip", {f"set/{i}{ending}": b"" for i in range(4)})
        with pytest.raises(DataError, match="one of more than 3"):
            extract(archive, tmp_path / "set")


MANY_FOLDERS = [[f"{i}/" for i in range(101)], [f"{i}/x/y" for i in range(50)], ["0/" * 60, "1/" * 60]]


@pytest.mark.parametrize("names", MANY_FOLDERS)
def test_folders_are_counted_also_those_that_no_entry_names(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_FOLDERS", 100)
    with pytest.raises(DataError, match="needs one of more than 100 folders"):
        extract(zip_with(tmp_path / "x.zip", dict.fromkeys(names, b"")), tmp_path / "set")
    assert visible(tmp_path) == ["x.zip"]


def test_the_archive_s_only_folder_becomes_the_folder(tmp_path: Path) -> None:
    archive = zip_with(tmp_path / "x.zip", {"odd name/train/1.png": b"1", "__MACOSX/._1.png": b"junk"})
    extract(archive, tmp_path / "set")
    assert (tmp_path / "set" / "train" / "1.png").read_bytes() == b"1"
    assert visible(tmp_path / "set") == ["train"]
    assert (tmp_path / "set").stat().st_mode & 0o055 == (~_umask() & 0o055)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_members_without_a_folder_are_unpacked_into_an_existing_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    extract(tar_with(tmp_path / "x.tgz", member("./a/1"), member("b/2"), content=b"x"), tmp_path / "set")
    assert visible(tmp_path / "set") == ["a", "b"]


def test_an_archive_does_not_overwrite_existing_files(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        extract(zip_with(tmp_path / "x.zip", {"set/1": b"1"}), tmp_path / "set")
    assert visible(tmp_path / "set") == ["mine"]


@pytest.mark.parametrize("make", [tar_with, None])
def test_a_truncated_archive_is_called_damaged(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "x"
    if make is None:
        zip_with(path, {"set/1": os.urandom(5000)})
        content = bytearray(path.read_bytes())
        content[2000] ^= 255  # the CRC notices
        path.write_bytes(content)
    else:
        tar_with(path, member("set/1"), content=os.urandom(5000))
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="x: damaged"):
        extract(path, tmp_path / "set")
    assert visible(tmp_path) == ["x"]


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="neither a zip nor a tar archive"):
        extract(tmp_path / "x.zip", tmp_path / "set")


LARGE_HEADERS = {"pax": b"x", "global pax": b"g", "Solaris pax": b"X", "long name": b"L", "long link": b"K"}


@pytest.mark.parametrize("kind", LARGE_HEADERS)
def test_a_header_of_gigabytes_is_refused_before_it_is_read(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / "x.tgz"
    with gzip.open(archive, "wb", 1) as file:
        file.write(header("x", LARGE_HEADERS[kind], 3 << 30))
        file.write(b"\0" * (64 << 20))  # the first of them
    tracemalloc.start()
    with pytest.raises(DataError, match=r"not safe to unpack: a header of 3,221,225,472 bytes"):
        extract(archive, tmp_path / "set")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert visible(tmp_path) == ["x.tgz"]


def test_consecutive_headers_share_one_limit(tmp_path: Path) -> None:
    many = [header("x", b"L", 200 << 10), b"a" * (200 << 10)] * 10
    with pytest.raises(DataError, match="not safe to unpack: a header of"):
        extract(raw_tar(tmp_path / "x.tgz", *many, header("set/x")), tmp_path / "set")


def test_headers_that_decompress_to_far_more_than_the_archive_are_refused(tmp_path: Path) -> None:
    blocks = [block for i in range(64) for block in (*pax("comment", "x" * 900_000), header(f"set/{i}"))]
    with pytest.raises(DataError, match="decompresses to over 100 times its size"):
        extract(raw_tar(tmp_path / "x.tgz", *blocks), tmp_path / "set")
    assert visible(tmp_path) == ["x.tgz"]


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open, open])
def test_every_compression_is_recognised_by_its_content(opener: Any, tmp_path: Path) -> None:
    with opener(tmp_path / "x", "wb") as file, tarfile.open(fileobj=file, mode="w") as content:
        content.addfile(member("set/a/1"), io.BytesIO())
    extract(tmp_path / "x", tmp_path / "set")
    assert (tmp_path / "set" / "a" / "1").is_file()


ZIP_LIES = {"smaller than it is": (24, 10), "larger than it is": (24, 1 << 30), "compressed to less": (20, 10)}


@pytest.mark.parametrize("lie", ZIP_LIES)
def test_a_zip_that_lies_about_sizes_is_called_damaged(lie: str, tmp_path: Path) -> None:
    archive = zip_with(tmp_path / "x.zip", {"set/x": os.urandom(10_000)})
    content = bytearray(archive.read_bytes())
    offset, value = ZIP_LIES[lie]
    entry = content.index(b"PK\1\2")
    content[entry + offset : entry + offset + 4] = struct.pack("<I", value)
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.zip: damaged"):
        extract(archive, tmp_path / "set")
    assert visible(tmp_path) == ["x.zip"]


def test_a_zip64_directory_beyond_the_end_is_called_damaged(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 50, 1 << 50)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    archive.write_bytes(record + locator + end)
    with pytest.raises(DataError, match="damaged"):
        extract(archive, tmp_path / "set")


def test_an_encrypted_zip_is_called_damaged(tmp_path: Path) -> None:
    archive = zip_with(tmp_path / "x.zip", {"set/x": b"x"})
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        extract(archive, tmp_path / "set")


def test_a_name_longer_than_the_file_system_allows_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="File name too long"):
        extract(zip_with(tmp_path / "x.zip", {"set/" + "x" * 300: b""}), tmp_path / "set")
    assert visible(tmp_path) == ["x.zip"]


def test_names_that_differ_in_case_are_not_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_with(tmp_path / "x.zip", {"set/Ant/1": b"1", "set/ant/2": b"2"})
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(archives, "_folds_case", lambda folder: True)
        with pytest.raises(DataError, match="'set/ant/2' differs from another only in case"):
            extract(archive, tmp_path / "set")
    extract(archive, tmp_path / "set")
    assert visible(tmp_path / "set") == ["Ant", "ant"]


def test_a_member_s_name_is_printable_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        extract(zip_with(tmp_path / "x.zip", {"../\x1b[31m" + "x" * 900: b""}), tmp_path / "set")
    assert str(raised.value).replace("\n", "").isprintable()
    assert len(str(raised.value)) < 500
