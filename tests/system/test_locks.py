"""A wait for a lock names the process that holds it."""

import multiprocessing
import os
import signal
import sys
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from filelock import FileLock

from graft.system.locks import holder_of, locked


def hold(lock_file: Path, acquired: Event, release: Event) -> None:
    with FileLock(lock_file):
        acquired.set()
        release.wait(60)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/locks")
def test_a_waiting_process_names_the_holder_and_that_it_is_stopped(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    acquired, release = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "lock", acquired, release))
    holder.start()
    assert acquired.wait(60)
    assert holder.pid is not None
    assert holder_of(tmp_path / "lock").startswith(f"process {holder.pid} (")
    os.kill(holder.pid, signal.SIGSTOP)
    os.waitpid(holder.pid, os.WUNTRACED)
    messages: list[str] = []

    def continued(who: str) -> None:
        messages.append(who)
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGCONT)
        release.set()

    with locked(tmp_path / "lock", continued):
        holder.join()
    assert f"which is stopped (kill -CONT {holder.pid} continues it)" in messages[0]


def test_a_free_lock_is_acquired_silently(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", lambda who: pytest.fail(who)):
        pass
