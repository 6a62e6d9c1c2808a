"""Handling of requests to stop: Ctrl-C, SIGTERM, a closed terminal, and the warnings of schedulers before they kill.

Imports nothing large."""

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
"""Signals that request a stop. SIGHUP: a terminal or an SSH connection was closed (`nohup` ignores it). SIGUSR1 and
SIGUSR2: Slurm sends them before a time limit or a preemption (`sbatch --signal`)."""

PATIENCE = 20.0
"""Seconds after a request before a run that finishes its epoch or validation first is interrupted."""

TWICE = 1.0
"""Seconds within which a repeated signal is the same request: schedulers and terminals may signal a process and its
parent, which forwards it. A later one ends the process at once."""

GRACE = 3.0
"""Seconds from the second request until the process is ended."""

INTERRUPTED = 130
"""Exit code of a process that stopped on request."""


class Request:
    """Request to stop this process. Signals belong to the process, so there is one instance, `STOP`.

    Attributes:
        asked: time of the request on the monotonic clock; None: none.
        heeded: a callback checks `asked` and stops when it suits; otherwise a signal raises KeyboardInterrupt.
        waiting: the process waits for the next training batch, which may never come.
        own: number of signals that this process sent to itself and `_watch` has not yet read.
    """

    def __init__(self) -> None:
        self.asked: float | None = None
        self.heeded = False
        self.waiting = False
        self.own = 0
        self._taken: list[int] = []

    def __call__(self, *_: Any) -> None:
        """Signal handler."""
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
        """Whether the request is older than PATIENCE."""
        return self.asked is not None and time.monotonic() - self.asked > PATIENCE

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals of ASKING, except for those that a launcher handles or the shell ignores."""
        if threading.current_thread() is not threading.main_thread() or self._taken:
            yield
            return
        default = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: signal.getsignal(number) for number in ASKING}
        self._taken = [number for number, handler in before.items() if handler in default]
        self.asked = None
        try:
            self.take()
            yield
        finally:
            for number in self._taken:
                signal.signal(number, before[number])
            self._taken = []

    def take(self) -> None:
        """Install the handlers of `listening` again: Lightning replaces them with its own."""
        for number in self._taken:
            signal.signal(number, self)


STOP = Request()


_watched = False


def end_when_asked_twice() -> None:
    """End this process within GRACE seconds of a second signal of ASKING, even if its main thread hangs.

    Python's handlers run in the main thread, and not while it computes or waits in C code. A second thread therefore
    reads the signals from the interpreter's wakeup file descriptor. For commands, not for a notebook, which would
    lose everything in its memory.
    """
    global _watched
    if _watched or threading.current_thread() is not threading.main_thread():
        return
    _watched = True
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_wakeup)  # else signals of worker processes would arrive here
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
        os.write(2, b"stopped at the second signal; earlier checkpoints are intact\n")
    with contextlib.suppress(Exception):
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    sender.fileno()  # kept open: the interpreter writes to it
    os._exit(INTERRUPTED)
