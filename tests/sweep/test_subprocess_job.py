"""A function in a separate process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from commands import ROOT
from subprocess_targets import be_interrupted, be_killed, fail, leave_a_note

from graft.sweep.subprocess_job import INTERRUPTED, run_in_subprocess

PARENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from graft.sweep.subprocess_job import run_in_subprocess
from subprocess_targets import write_pid_and_wait
if __name__ == "__main__":
    run_in_subprocess(write_pid_and_wait, Path({folder!r}), {handles_sigterm})
"""


def test_the_function_runs_in_another_process_and_its_exit_code_is_returned(tmp_path: Path) -> None:
    assert run_in_subprocess(leave_a_note, tmp_path) == 0
    assert (tmp_path / "note").read_text() != str(os.getpid())
    assert run_in_subprocess(fail) == 1
    assert run_in_subprocess(be_interrupted) == INTERRUPTED
    assert run_in_subprocess(be_killed) == -signal.SIGKILL


NOTICED = """
import sys
sys.path.insert(0, {tests!r})
from graft.sweep.subprocess_job import run_in_subprocess
from subprocess_targets import be_noticed
sys.exit(run_in_subprocess(be_noticed))
"""


def test_slurm_signals_to_all_processes_are_handled_by_the_parent() -> None:
    # in a separate process: here another test may have started the one that is forked from
    code = NOTICED.format(tests=str(ROOT / "tests"))
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def started(folder: Path, handles_sigterm: bool) -> tuple[subprocess.Popen[bytes], int]:
    """A parent in a separate process, and the pid of its child."""
    tests = str(ROOT / "tests")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(tests=tests, folder=str(folder), handles_sigterm=handles_sigterm)]
    )
    pid = folder / "pid"
    while not (pid.is_file() and pid.read_text()):
        assert parent.poll() is None
        time.sleep(0.01)
    return parent, int(pid.read_text())


def gone(pid: int, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_the_child_ends_after_kill_9_of_the_parent(tmp_path: Path) -> None:
    parent, child = started(tmp_path, handles_sigterm=False)
    parent.kill()
    parent.wait()
    assert gone(child)


def test_the_child_receives_sigterm_and_can_clean_up(tmp_path: Path) -> None:
    parent, child = started(tmp_path, handles_sigterm=True)
    parent.terminate()
    assert parent.wait(30) != 0
    assert gone(child)
    assert (tmp_path / "asked").read_text() == "to stop"
