"""Archives that mean harm, or are not what they say."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graft import archives
from graft.archives import extract
from graft.errors import DataError


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
    "zip bomb": lambda p: zip_with(p, {"set/zeros": b"\0" * 8_000_000}),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_archive_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    archive = HARMFUL[kind](tmp_path / "harm")
    with pytest.raises(DataError, match="is not safe to unpack: its member") as raised:
        extract(archive, inside / "set")
    assert "harm" in str(raised.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "harm"]
    assert not Path("/tmp/graft_out").exists()


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    archive = zip_with(tmp_path / "x.zip", {f"set/{i}": b"x" for i in range(4)})
    with pytest.raises(DataError, match="one of more than 3 files"):
        extract(archive, tmp_path / "set")


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


def test_loose_members_go_into_the_folder_and_an_empty_one_is_taken(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    extract(tar_with(tmp_path / "x.tgz", member("./a/1"), member("b/2"), content=b"x"), tmp_path / "set")
    assert visible(tmp_path / "set") == ["a", "b"]


def test_nothing_is_unpacked_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("mine")
    with pytest.raises(DataError, match="is there already"):
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


def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="neither a zip nor a tar archive"):
        extract(tmp_path / "x.zip", tmp_path / "set")
