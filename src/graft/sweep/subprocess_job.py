"""A function in a process of its own: what it leaves in memory or on a GPU goes with it, and so does what kills it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from graft.system.signals import INTERRUPTED, end_when_asked_twice
from graft.system.startup import safe_path

UNIX = hasattr(os, "setpgid")

NOTICES = [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2] if UNIX else []
"""What a terminal, or Slurm, may send to all processes of a job: we answer it, for what we run too."""

PATIENCE = 60.0
"""Seconds that one who was asked to stop may take."""


def run_apart(function: Callable[..., None], *arguments: Any, preload: Sequence[str] = ()) -> int:
    """Call `function(*arguments)` in a new process and wait for its end.

    It ends when we do, even by kill -9. What interrupts us (Ctrl-C, SIGTERM, a scheduler's notice) reaches it as
    SIGTERM, so that it can leave in order, and is raised again here.

    Args:
        function: importable by name.
        arguments: picklable.
        preload: heavy modules, imported once for all calls.

    Returns:
        0; 1 after an exception; INTERRUPTED after a KeyboardInterrupt; -N when signal N ended it.
    """
    # On Linux new processes fork from one that holds the imports and has touched no GPU; elsewhere forks are unsafe.
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(list(preload))
    child = None
    with _interrupted_by_sigterm():
        try:
            with _without_notices(), safe_path(), _known_start_method() as start_method:
                child = context.Process(target=_enter, args=(start_method, function, arguments))
                child.start()
            child.join()
        except BaseException:
            if child is not None:
                _end(child)
            raise
    assert child.exitcode is not None
    if child.exitcode < 0:
        _kill_group(child)  # its data loaders or its fellows in DDP
    return child.exitcode


def _enter(start_method: str, function: Callable[..., None], arguments: Sequence[Any]) -> None:
    multiprocessing.set_start_method(start_method, force=True)  # else data loaders would start as we were
    if UNIX:
        os.setpgid(0, 0)  # a terminal's Ctrl-C goes to our parent, who passes it on once
        # said again: what we fork from may have been started by somebody else, with other signals blocked
        signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow_parent, daemon=True).start()
    end_when_asked_twice()
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
def _known_start_method() -> Iterator[str]:
    """How this process starts others, or the platform's way where joblib has put its own in the place of it."""
    current, known = multiprocessing.get_start_method(), multiprocessing.get_all_start_methods()
    method = current if current in known else known[0]
    multiprocessing.set_start_method(method, force=True)
    try:
        yield method
    finally:
        multiprocessing.set_start_method(current, force=True)


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """What is started inside is spared all NOTICES, a Ctrl-C while it imports among them."""
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
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, unless somebody (a launcher, nohup) already deals with them."""
    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(child: BaseProcess) -> None:
    if child.pid is None or not child.is_alive():
        return
    try:
        child.terminate()
        child.join(PATIENCE)
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
