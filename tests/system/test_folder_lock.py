"""A folder is locked by one process at a time, on file systems with and without locks, and is free after a kill."""

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import filelock
import pytest
from subprocess_targets import hold_folder

from graft.errors import ConfigError, DataError
from graft.system.folder_lock import FolderLock, new_folder


def lock(folder: Path) -> FolderLock:
    return FolderLock(folder, "hydra.run.dir")


@contextmanager
def locked(folder: Path, *, with_worker: bool = False) -> Iterator[BaseProcess]:
    """`folder`, locked by another process."""
    holder = multiprocessing.get_context("fork").Process(target=hold_folder, args=(folder, with_worker))
    holder.start()
    while not ((folder / "held").exists() and (folder / "held").read_text()):
        assert holder.is_alive()
        time.sleep(0.01)
    try:
        yield holder
    finally:
        holder.kill()
        holder.join()


@pytest.fixture(params=[None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=["flock", "NOLCK", "NOSYS", "NOTSUP"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kinds of file systems, by how flock answers."""
    if request.param is not None:
        fcntl = pytest.importorskip("fcntl")

        def flock(*_: object) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_folder_in_use_is_refused_with_its_holder_and_free_after_a_kill(file_system: None, tmp_path: Path) -> None:
    with locked(tmp_path) as holder:
        message = rf"hydra\.run\.dir=\S+: in use by process {holder.pid} on \S+, since 20\d\d-\S+\.\n"
        with pytest.raises(ConfigError, match=message):
            lock(tmp_path).acquire()
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        with lock(tmp_path):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["held"], "nothing is left of the locks"


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_the_same_process_cannot_lock_a_folder_twice(file_system: None, tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(ConfigError, match=f"process {os.getpid()} "):
        lock(tmp_path).acquire()
    with lock(tmp_path):
        pass


def test_a_data_loader_that_outlives_its_killed_run_holds_no_lock(tmp_path: Path) -> None:
    with locked(tmp_path, with_worker=True) as holder:
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        worker = int((tmp_path / "held").read_text())
        os.kill(worker, 0)
        try:
            with lock(tmp_path):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_without_locks_a_holder_file_of_another_host_counts_except_in_the_same_slurm_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "17",
            "SLURM_STEP_ID": "0"}  # fmt: skip
    (tmp_path / ".lock.held").write_text("12345\nelsewhere\n")
    there = {"host": "elsewhere", "pid": 12345, "since": "2026-01-31T12:00:00+00:00", "step": "17.0"}
    (tmp_path / ".lock.json").write_text(json.dumps(there))
    with pytest.raises(ConfigError, match=r"(?s)12345 on elsewhere, since 2026.*is gone, remove \S+/\.lock\.held"):
        lock(tmp_path).acquire()
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    with lock(tmp_path):  # Slurm queues a job again only when it has ended
        pass


@pytest.mark.parametrize("content", ["", "[]", '{"pid": "\\u001b[2J"}', "\x00" * 9])
def test_an_unreadable_holder_file_names_no_process(content: str, tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"):
        (tmp_path / ".lock.json").write_text(content)
        with pytest.raises(ConfigError, match="in use by another process"):
            lock(tmp_path).acquire()


def test_folders_created_concurrently_are_different(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "deep" / "now"), range(24)))
    assert len(set(folders)) == 24
    assert {"now", "now_1", "now_23"} < {folder.name for folder in folders}


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for make in (new_folder, lambda folder: lock(folder).acquire()):
        with pytest.raises(DataError, match=r"file/now: cannot be written \("):
            make(tmp_path / "file" / "now")
