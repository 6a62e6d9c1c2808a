"""Functions that tests run in a separate process, which imports them by name."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path


def leave_a_note(folder: Path) -> None:
    (folder / "note").write_text(str(os.getpid()))


def fail() -> None:
    raise ValueError("no")


def be_interrupted() -> None:
    raise KeyboardInterrupt


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_noticed() -> None:
    for process in (os.getpid(), os.getppid()):  # ours, and the one that it was forked from
        os.kill(process, signal.SIGUSR2)
    time.sleep(0.2)


def write_pid_and_wait(folder: Path, handles_sigterm: bool) -> None:
    if handles_sigterm:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit((folder / "asked").write_text("to stop")))
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(60)


def train_here(folder: Path, *words: str) -> None:
    import graft

    graft.train(*words, folder=folder, echo=False)


def hold_folder(folder: Path, with_worker: bool) -> None:
    from graft.system.folder_lock import FolderLock

    with FolderLock(folder, "hydra.run.dir"):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        if with_worker:
            worker.start()
        (folder / "held").write_text(str(worker.pid))
        time.sleep(60)
