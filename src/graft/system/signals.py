"""Handling of requests to stop: Ctrl-C, SIGTERM, a closed terminal, and the warnings of schedulers before they kill."""

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
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Signals that request a stop. SIGHUP: a terminal or an SSH connection was closed (`nohup` ignores it). SIGUSR1 and
SIGUSR2: Slurm sends them before a time limit or a preemption (`sbatch --signal`)."""

PATIENCE_SECONDS = 20.0
"""Seconds after a request until a run that finishes its epoch or validation first is interrupted."""

DUPLICATE_SECONDS = 1.0
"""Seconds within which a repeated signal belongs to the same request: schedulers and terminals may signal a process and
its parent, which forwards the signal. A later one ends the process at once."""

GRACE_SECONDS = 3.0
"""Seconds from the second request until the process is ended."""

INTERRUPTED = 130
"""Exit code of a process that was stopped by a signal."""


class StopRequest:
    """Handler of signals that request this process to stop. There is one instance per process, `STOP`.

    Attributes:
        requested_at: time of the request on the monotonic clock; None without a request.
        deferred: whether a callback checks `requested_at` and stops after a step; otherwise a signal raises
            KeyboardInterrupt.
        waiting_for_batch: whether the process waits for the next training batch, which may never arrive.
        self_sent: number of signals that this process sent to itself and the watching thread has not yet read.
    """

    def __init__(self) -> None:
        self.requested_at: float | None = None
        self.deferred = False
        self.waiting_for_batch = False
        self.self_sent = 0
        self._handled: list[int] = []

    def __call__(self, *_: Any) -> None:
        """Signal handler."""
        now = time.monotonic()
        if self.requested_at is None:
            self.requested_at = now
            if self.deferred:
                threading.Thread(target=self._interrupt_when_overdue, daemon=True).start()
        elif self.deferred and now - self.requested_at < DUPLICATE_SECONDS:
            return
        else:
            raise KeyboardInterrupt
        if not self.deferred:
            raise KeyboardInterrupt

    def _interrupt_when_overdue(self) -> None:
        while self.deferred and self.requested_at is not None:
            if self.overdue and self.waiting_for_batch:
                self.self_sent += 1
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return
            time.sleep(0.5)

    @property
    def overdue(self) -> bool:
        """Whether the request is older than PATIENCE_SECONDS."""
        return self.requested_at is not None and time.monotonic() - self.requested_at > PATIENCE_SECONDS

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle STOP_SIGNALS in the block, except those that a launcher handles or the shell ignores."""
        if threading.current_thread() is not threading.main_thread() or self._handled:
            yield
            return
        default = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        self._handled = [number for number, handler in before.items() if handler in default]
        self.requested_at = None
        try:
            self.install_handlers()
            yield
        finally:
            for number in self._handled:
                signal.signal(number, before[number])
            self._handled = []

    def install_handlers(self) -> None:
        """Install the handlers again, after Lightning has replaced them with its own."""
        for number in self._handled:
            signal.signal(number, self)


STOP = StopRequest()


_watching = False


def exit_on_second_signal() -> None:
    """End this process within GRACE_SECONDS after a second signal of STOP_SIGNALS, even if its main thread hangs.

    Python runs handlers in the main thread, but not while that computes or waits in C code. A second thread therefore
    reads the signals from the interpreter's wakeup file descriptor. Only commands call this; a notebook would lose
    everything in its memory.
    """
    global _watching
    if _watching or threading.current_thread() is not threading.main_thread():
        return
    _watching = True
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_reset_wakeup_fd)  # otherwise signals of worker processes would arrive here
    threading.Thread(target=_exit_on_second_signal, args=(receiver, sender), name="signals", daemon=True).start()


def _reset_wakeup_fd() -> None:
    global _watching
    _watching = False
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _exit_on_second_signal(receiver: socket.socket, sender: socket.socket) -> None:
    first: float | None = None
    while True:
        number = receiver.recv(1)[0]
        now = time.monotonic()
        if number not in STOP_SIGNALS:
            continue
        if STOP.self_sent:
            STOP.self_sent -= 1
        elif first is None:
            first = now
        elif now - first >= DUPLICATE_SECONDS:
            break
    time.sleep(GRACE_SECONDS)
    with contextlib.suppress(OSError):
        os.write(2, b"stopped at the second signal; earlier checkpoints are intact\n")
    with contextlib.suppress(Exception):
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    sender.fileno()  # kept open: the interpreter writes to it
    os._exit(INTERRUPTED)
