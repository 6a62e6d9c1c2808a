"""Calls a function in a subprocess, so that its memory is released, on GPUs too, and a crash ends only that process."""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from graft.system.signals import INTERRUPTED, exit_on_second_signal
from graft.system.startup import safe_path

UNIX = hasattr(os, "setpgid")

NOTICES = [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2] if UNIX else []
"""Signals that a terminal or Slurm sends to all processes of a job; the parent handles them for its child."""

SWEEP = "GRAFT_SWEEP_PID"
"""Environment variable with the process id of the sweep, for its worker processes."""

GRACE_PERIOD = 60.0
"""Seconds between SIGTERM and SIGKILL for a child that must stop."""


def run_in_subprocess(function: Callable[..., None], *arguments: Any, preload: Sequence[str] = ()) -> int:
    """Call `function(*arguments)` in a new process and wait until it ends.

    The child ends with this process, even after kill -9, and this process with the sweep whose worker it is. An
    interruption (Ctrl-C, SIGTERM, a notice of the scheduler) is forwarded as SIGTERM, so that the child can save its
    state, and is raised again here.

    Args:
        function: importable by name.
        arguments: picklable.
        preload: large modules, imported once for all calls.

    Returns:
        0; 1 after an exception; INTERRUPTED after a KeyboardInterrupt; -N if signal N killed it.
    """
    # On Linux, children fork from a server process with the imports and no CUDA context; elsewhere forks are unsafe.
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(list(preload))
    child = None
    _end_with_sweep()
    with _interrupted_by_sigterm():
        try:
            with _without_notices(), safe_path(), _platform_start_method() as start_method:
                child = context.Process(target=_run_child, args=(start_method, function, arguments))
                child.start()
            child.join()
        except BaseException:
            if child is not None:
                _stop(child)
            raise
    assert child.exitcode is not None
    if child.exitcode < 0:
        _kill_group(child)  # its data loaders and DDP processes
    return child.exitcode


@functools.cache
def _end_with_sweep() -> None:
    """End this process when the sweep that started it as a worker is gone: after kill -9 nobody waits for its jobs."""
    sweep = os.getppid()
    if os.environ.get(SWEEP) == str(sweep):
        threading.Thread(target=_follow_sweep, args=(sweep,), daemon=True).start()


def _follow_sweep(sweep: int) -> NoReturn:
    while os.getppid() == sweep:
        time.sleep(1.0)
    os._exit(1)


def _run_child(start_method: str, function: Callable[..., None], arguments: Sequence[Any]) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # else data loaders would use forkserver or spawn too
    if UNIX:
        os.setpgid(0, 0)  # a terminal's Ctrl-C reaches only the parent, which forwards it once
        # again: the fork server may have been started with other signals blocked
        signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow_parent, daemon=True).start()
    exit_on_second_signal()
    try:
        function(*arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    if UNIX:
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


@contextlib.contextmanager
def _platform_start_method() -> Iterator[str]:
    """Name of the start method of this process, or the platform's default while joblib's loky has replaced it."""
    current, known = multiprocessing.get_start_method(), multiprocessing.get_all_start_methods()
    method = current if current in known else known[0]
    multiprocessing.set_start_method(method, force=True)
    try:
        yield method
    finally:
        multiprocessing.set_start_method(current, force=True)


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Block NOTICES for processes that are started inside, including a Ctrl-C while they import."""
    if not UNIX:
        yield
        return
    old = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, unless they already have a handler (of a launcher, or nohup)."""
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    unhandled = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    for number in unhandled:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def _stop(child: BaseProcess) -> None:
    if child.pid is None or not child.is_alive():
        return
    try:
        child.terminate()
        child.join(GRACE_PERIOD)
    finally:
        child.kill()
        child.join()
        _kill_group(child)


def _kill_group(child: BaseProcess) -> None:
    assert child.pid is not None
    if not UNIX:
        return
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
