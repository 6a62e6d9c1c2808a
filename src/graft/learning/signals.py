"""What asks a run to stop: Ctrl-C, SIGTERM, and the notices that schedulers send before they kill. No heavy import."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""SIGUSR1 and SIGUSR2 are what Slurm is told to send ahead of a time limit or a preemption (`sbatch --signal`)."""

PATIENCE = 20.0
"""Seconds after which one who was asked to stop, and wanted to finish something first, is interrupted."""

TWICE = 1.0
"""Schedulers and terminals may ask a process and its parent; asked again after so many seconds, it ends at once."""


class Request:
    """Whether this process was asked to stop. Signals belong to the process, so there is one of these, `STOP`.

    Attributes:
        asked: when, by the monotonic clock; None: not.
        heeded: somebody looks at `asked` where it is good to stop; otherwise a KeyboardInterrupt is raised at once.
    """

    def __init__(self) -> None:
        self.asked: float | None = None
        self.heeded = False
        self._taken: list[int] = []

    def __call__(self, *_: Any) -> None:
        """The signals' handler."""
        now = time.monotonic()
        if self.asked is None:
            self.asked = now
        elif self.heeded and now - self.asked < TWICE:
            return
        else:
            raise KeyboardInterrupt
        if not self.heeded:
            raise KeyboardInterrupt

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
