"""Files are complete or absent, also after a crash of the machine, and only Graft's own are ever removed."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from graft.data.contents import IDENTITY
from graft.data.feature_batches import Layout
from graft.features.segments import FeatureRequest
from graft.features.store import FeatureStore
from graft.learning.checkpoint_writing import AtomicCheckpointIO
from graft.system.files import remove_unfinished, sync, write_atomically, writing_atomically, writing_folder_atomically


class Disk:
    """What was synced and renamed, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int]] = []
        fsync, rename = os.fsync, os.replace

        def syncing(file: int) -> None:
            fsync(file)
            self.events.append(("sync", os.fstat(file).st_ino))

        def renaming(source: Path, target: Path) -> None:
            rename(source, target)
            self.events.append(("rename", os.stat(target).st_ino))

        monkeypatch.setattr(os, "fsync", syncing)
        monkeypatch.setattr(os, "rename", renaming)
        monkeypatch.setattr(os, "replace", renaming)

    def would_keep(self, path: Path, named: Path | None = None) -> bool:
        """Whether a crash now would leave `path` complete and under its name, which it has by renaming `named`."""
        named = named or path
        renamed = [at for at, event in enumerate(self.events) if event == ("rename", named.stat().st_ino)][-1]
        content = ("sync", path.stat().st_ino) in self.events[:renamed]
        return content and ("sync", named.parent.stat().st_ino) in self.events[renamed:]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_files_and_checkpoints_survive_a_crash_once_written(tmp_path: Path, disk: Disk) -> None:
    write_atomically(tmp_path / "summary.json", b"{}")
    assert disk.would_keep(tmp_path / "summary.json")
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "checkpoints" / "last.ckpt")
    assert disk.would_keep(tmp_path / "checkpoints" / "last.ckpt")


def test_exported_files_survive_a_crash_once_written(tmp_path: Path, disk: Disk) -> None:
    with writing_folder_atomically(tmp_path / "export") as part:
        for name in ("net.onnx", "net.onnx.json"):
            (part / name).write_bytes(name.encode())
    for name in ("net.onnx", "net.onnx.json"):
        assert disk.would_keep(tmp_path / "export" / name)


def test_features_survive_a_crash_once_written(tmp_path: Path, disk: Disk) -> None:
    layout = Layout(torch.float32, (3,), False)
    store = FeatureStore(tmp_path, 1 << 20)
    images = np.arange(4).astype(IDENTITY)
    rows = lambda missing: (row for row in [(torch.zeros(4, 3),)])  # noqa: E731
    [stored] = store.obtain([FeatureRequest({}, [layout], images, "", rows)])
    store.close()
    folder = stored.segments[0].files[0].parent
    for file in folder.iterdir():
        assert disk.would_keep(file, named=folder)


def test_a_folder_that_cannot_be_synced_is_no_error_and_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")


def test_processes_with_equal_ids_on_two_machines_write_a_complete_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with writing_atomically(tmp_path / "file") as one, writing_atomically(tmp_path / "file") as other:
        one.write(b"long " * 1000)
        other.write(b"short")
    assert (tmp_path / "file").read_bytes() == b"long " * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_unfinished_files_of_graft_are_removed(tmp_path: Path) -> None:
    kept = [".last.ckpt.backup.part", ".last.ckpt.12.part", ".best.ckpt.12.0123abcd.part", "last.ckpt.12.0123abcd.part"]
    for name in (*kept, ".last.ckpt.12.0123abcd.part"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path / "last.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
