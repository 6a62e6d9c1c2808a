"""Commands end where shared memory, worker processes or files would block them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, TINY, command, succeeded

WORKERS = (*TINY, "data.num_workers=4", "data.resident_gb=0", "data.batch_size=64", "trainer.max_epochs=1")


def test_a_run_in_a_container_with_hardly_any_shared_memory(tmp_path: Path, small_shared_memory: Path) -> None:
    words = (str(ROOT / "train.py"), f"hydra.run.dir={tmp_path}/run", *WORKERS)
    run = succeeded(command(tmp_path / "run", *words, before=[str(small_shared_memory)], timeout=120))
    assert run.summary["status"] == "finished"


BLOCKED = """
import ctypes, threading
import graft.cli

def block(config):
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    threading.Timer(0.5, lambda: print("blocked", flush=True)).start()
    libc.pthread_mutex_lock(mutex)  # in C, for ever, and no signal interrupts it

graft.cli._hydra_app = lambda task: lambda: listening(block)

def listening(task):
    from graft.system.signals import STOP
    with STOP.handling_signals():
        task(None)

graft.cli.main("train")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_second_signal_ends_a_command_whose_main_thread_hangs_in_c(number: signal.Signals, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", BLOCKED], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "blocked\n"
        child.send_signal(number)
        time.sleep(1.5)
        assert child.poll() is None, "the first one asks"
        child.send_signal(number)
        _, err = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "stopped at the second signal" in err


def workers_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_whose_workers_are_stopped_ends_with_the_reason_and_is_saved_before(tmp_path: Path) -> None:
    words = (*WORKERS, "data.num_workers=2", "data.timeout=2", "trainer.max_epochs=10000", "trainer.baseline=false")
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={tmp_path}/run", *words],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (tmp_path / "run/checkpoints/last.ckpt").is_file():
            assert child.poll() is None
            time.sleep(0.05)
        workers = workers_of(child.pid)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        _, err = child.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        for pid in workers:  # nothing else ends a stopped process
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        child.kill()
    assert child.returncode == 1
    assert "data.timeout=2: the worker processes sent no batch for 2 seconds: worker process" in err
    assert "is stopped (SIGSTOP" in err
    assert "Traceback" not in err
