"""Data sets are downloaded once and verified; manual downloads are found, and no user's file is removed."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from image_folders import fill, load, sizes, state

from graft.data.loading import ensure, load_splits, locate
from graft.data.sources import hymenoptera
from graft.data.sources.base import Download
from graft.errors import DataError, NotAvailable
from graft.system.archives import TEMPORARY


@pytest.fixture
def served(http_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """hymenoptera's archive, small, on a local server."""
    fill(
        tmp_path / "origin" / "hymenoptera_data",
        {f"{part}/{name}": 2 for part in ("train", "val") for name in "ab"},
    )
    shutil.make_archive(str(http_server.folder / "hymenoptera_data"), "zip", tmp_path / "origin")
    monkeypatch.setattr(
        hymenoptera, "DOWNLOAD", Download(f"{http_server.url}/hymenoptera_data.zip", "hymenoptera_data")
    )
    return http_server


def test_a_set_is_downloaded_once_and_leaves_no_other_files(served: Any, tmp_path: Path) -> None:
    root = tmp_path / "data" / "hymenoptera_data"
    assert locate("hymenoptera", root) is None
    for _ in range(2):
        assert sizes(load_splits("hymenoptera", root=root, seed=0)) == (4, 4, 4)
    assert [path for path, _ in served.requests] == ["/hymenoptera_data.zip"]
    assert [path.name for path in root.parent.iterdir() if not path.name.startswith(".")] == ["hymenoptera_data"]


def test_data_download_false_downloads_nothing_and_reports_it(served: Any, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match=r"data\.download=false"):
        load("hymenoptera", tmp_path / "data" / "hymenoptera_data")
    assert served.requests == []
    assert not (tmp_path / "data").exists()


def test_a_manually_downloaded_archive_is_unpacked_and_kept(served: Any, tmp_path: Path) -> None:
    root = tmp_path / "data" / "hymenoptera_data"
    message = str(locate("hymenoptera", root, download=False))
    by_hand = root.parent / "hymenoptera_data.zip"
    assert str(by_hand) in message
    assert str(root) in message
    root.parent.mkdir()
    shutil.copy(served.folder / "hymenoptera_data.zip", by_hand)
    assert locate("hymenoptera", root, download=False) is None
    assert sizes(load("hymenoptera", root)) == (4, 4, 4)
    assert by_hand.is_file()
    assert served.requests == []


def test_a_manually_unpacked_folder_is_used_even_if_it_is_read_only(tmp_path: Path, served: Any) -> None:
    root = tmp_path / "origin" / "hymenoptera_data"
    before = state(tmp_path / "origin")
    ensure("hymenoptera", root)
    assert state(tmp_path / "origin") == before


def test_a_damaged_manually_downloaded_archive_is_named_and_kept(tmp_path: Path) -> None:
    root = tmp_path / "flower_photos"
    (tmp_path / "flower_photos.tgz").write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"flower_photos\.tgz: damaged, or another file"):
        ensure("flowers", root)
    assert (tmp_path / "flower_photos.tgz").is_file()


def test_a_damaged_archive_from_the_server_is_removed(served: Any, tmp_path: Path) -> None:
    whole = (served.folder / "hymenoptera_data.zip").read_bytes()
    (served.folder / "hymenoptera_data.zip").write_bytes(whole[:200])
    root = tmp_path / "data" / "hymenoptera_data"
    with pytest.raises(DataError, match=r"hymenoptera_data\.zip: "):
        ensure("hymenoptera", root)
    (served.folder / "hymenoptera_data.zip").write_bytes(whole)
    ensure("hymenoptera", root)
    assert (root / "train" / "a" / "0.png").is_file()


def test_files_of_a_killed_run_are_removed_and_user_files_with_similar_names_are_kept(
    served: Any, tmp_path: Path
) -> None:
    root = tmp_path / "data" / "hymenoptera_data"
    root.parent.mkdir()
    left = Path(tempfile.mkdtemp(prefix=f".hymenoptera_data.{TEMPORARY}", suffix=".partial", dir=root.parent))
    fill(left, {"content/half": 1})
    theirs = [
        root.parent / f".hymenoptera_data.{name}.partial"
        for name in ("labelled", "my_own", "2024-old", f"{TEMPORARY}labelled", f"{TEMPORARY}x1")
    ]
    for folder in theirs:
        fill(folder, {"content": 1})
    (root.parent / f".hymenoptera_data.{TEMPORARY}linked__.partial").symlink_to(theirs[0])
    ensure("hymenoptera", root)
    assert not left.exists()
    assert all((folder / "content" / "0.png").is_file() for folder in theirs)


def test_without_a_network_the_error_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://127.0.0.1:1/hymenoptera_data.zip"
    monkeypatch.setattr(hymenoptera, "DOWNLOAD", Download(url, "hymenoptera_data"))
    root = tmp_path / "data" / "hymenoptera_data"
    error = locate("hymenoptera", root)
    assert isinstance(error, NotAvailable)
    assert not (tmp_path / "data").exists()
    with pytest.raises(NotAvailable) as raised:
        ensure("hymenoptera", root)
    for message in (str(error), str(raised.value)):
        assert url in message
        assert "Connection refused" in message
        assert f"{root.parent}/hymenoptera_data.zip (the archive as it is), or unpacked at {root}" in message


TWO_RUNS = """
import sys
from pathlib import Path
from graft.data.loading import ensure
from graft.data.sources import hymenoptera
from graft.data.sources.base import Download
hymenoptera.DOWNLOAD = Download(sys.argv[1], "hymenoptera_data")
sys.stdin.readline()
ensure("hymenoptera", Path(sys.argv[2]))
print(sorted(path.name for path in Path(sys.argv[2]).rglob("*.png")))
"""


def test_two_runs_share_one_download(served: Any, tmp_path: Path) -> None:
    root = tmp_path / "data" / "hymenoptera_data"
    command = [sys.executable, "-c", TWO_RUNS, f"{served.url}/hymenoptera_data.zip", str(root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    outputs = [run.communicate(timeout=60)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert outputs[0].count("0.png") == 4
    assert [path for path, _ in served.requests] == ["/hymenoptera_data.zip"]


def test_tar_archives_of_flowers_are_checked_before_they_are_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "flower_photos.tgz"
    with tarfile.open(archive, "w:gz") as content:
        content.add(fill(tmp_path / "origin", {"daisy": 1}), "flower_photos")
    assert not zipfile.is_zipfile(archive)
    with pytest.raises(DataError, match="checksum"):
        ensure("flowers", tmp_path / "flower_photos")
    assert os.listdir(tmp_path / "origin") == ["daisy"]
