"""What asks a run to stop: Ctrl-C, SIGTERM, a closed terminal, and the notices that schedulers send before they kill.
No heavy import."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
ASKING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""SIGHUP comes when a terminal or an SSH connection is closed (`nohup` ignores it); SIGUSR1 and SIGUSR2 are what Slurm
is told to send ahead of a time limit or a preemption (`sbatch --signal`)."""

PATIENCE = 20.0
"""Seconds after which one who was asked to stop, and wanted to finish something first, is interrupted."""

TWICE = 1.0
"""Schedulers and terminals may ask a process and its parent; asked again after so many seconds, it ends at once."""

GRACE = 3.0
"""Seconds that a process that was asked twice has to end in order."""

INTERRUPTED = 130
"""Exit code of what was asked to stop."""


class Request:
    """Whether this process was asked to stop. Signals belong to the process, so there is one of these, `STOP`.

    Attributes:
        asked: when, by the monotonic clock; None: not.
        heeded: somebody looks at `asked` where it is good to stop; otherwise a KeyboardInterrupt is raised at once.
        waiting: all is done up to the next training batch, which may never come.
        own: number of signals that this process has sent itself and that `_watch` has still to see.
    """

    def __init__(self) -> None:
        self.asked: float | None = None
        self.heeded = False
        self.waiting = False
        self.own = 0
        self._taken: list[int] = []

    def __call__(self, *_: Any) -> None:
        """The signals' handler."""
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
            if self.heeded:
                threading.Thread(target=self._interrupt_when_overdue, daemon=True).start()
        elif self.heeded and now - self.asked < TWICE:
            return
        else:
            raise KeyboardInterrupt
        if not self.heeded:
            raise KeyboardInterrupt

    def _interrupt_when_overdue(self) -> None:
        while self.heeded and self.asked is not None:
            if self.overdue and self.waiting:
                self.own += 1
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            time.sleep(0.5)

    @property
    def overdue(self) -> bool:
        """Whether it was asked to so long ago that it should wait for nothing more."""
        return self.asked is not None and time.monotonic() - self.asked > PATIENCE

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, ASKING ask this; but what somebody else (a launcher) deals with, or the shell ignores, is left."""
        if threading.current_thread() is not threading.main_thread() or self._taken:
            yield
            return
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: signal.getsignal(number) for number in ASKING}
        self._taken = [number for number, handler in before.items() if handler in usual]
        self.asked = None
        try:
            self.take()
            yield
        finally:
            for number in self._taken:
                signal.signal(number, before[number])
            self._taken = []

    def take(self) -> None:
        """Take again what `listening` took: Lightning puts its own in the place of it."""
        for number in self._taken:
            signal.signal(number, self)


STOP = Request()


_watched = False


def end_when_asked_twice() -> None:
    """From now on a second signal of ASKING ends this process within GRACE seconds, even if its main thread hangs.

    Python's handlers run in the main thread, and not while that computes or waits in C code. So a thread reads what
    the interpreter notes of each signal that has a handler, and ends the process itself. For commands, not for a
    notebook, which would lose all it has in memory.
    """
    global _watched
    if _watched or threading.current_thread() is not threading.main_thread():
        return
    _watched = True
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_wakeup)  # else signals of worker processes would be told here
    threading.Thread(target=_watch, args=(receiver, sender), name="signals", daemon=True).start()


def _forget_wakeup() -> None:
    global _watched
    _watched = False
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _watch(receiver: socket.socket, sender: socket.socket) -> None:
    first: float | None = None
    while True:
        number = receiver.recv(1)[0]
        now = time.monotonic()
        if number not in ASKING:
            continue
        if STOP.own:
            STOP.own -= 1
        elif first is None:
            first = now
        elif now - first >= TWICE:
            break
    time.sleep(GRACE)
    with contextlib.suppress(OSError):
        os.write(2, b"ended at the second signal; what was saved before is as it was\n")
    with contextlib.suppress(Exception):
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    sender.fileno()  # open to the end: the interpreter writes to it
    os._exit(INTERRUPTED)
