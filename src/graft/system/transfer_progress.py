"""Progress of a transfer on stderr: a bar on a terminal, otherwise a line for each quarter or each 100 MB."""

import sys
from types import TracebackType
from typing import Any, Self


class TransferProgress:
    """Reports the progress of one transfer.

    Args:
        what: the file, e.g. "hymenoptera data".
        url: its address.
        quiet: report nothing.

    Attributes:
        received: bytes that this process has received.
    """

    def __init__(self, what: str, url: str, quiet: bool = False) -> None:
        self.what, self.url, self.quiet = what, url, quiet
        self.bar: Any = None
        self.total: int | None = None
        self.done = self.received = self.printed = 0

    def __enter__(self) -> Self:
        return self

    def begin(self, done: int, total: int | None) -> None:
        """Report a response: `done` bytes of `total` (None if unknown) are downloaded."""
        self.done, self.total = done, total
        if self.quiet:
            return
        if sys.stderr.isatty():
            self._bar().update(self.task, completed=done, total=total)
        else:
            size = f", {total / 1e6:.1f} MB" if total else ""
            verb = f"resuming at {done / 1e6:.1f} MB" if done else "downloading"
            print(f"{verb}: {self.what} from {self.url}{size}", file=sys.stderr)
            self.printed = self._steps()

    def advance(self, count: int) -> None:
        """Report `count` more bytes."""
        self.done += count
        self.received += count
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)
        elif not self.quiet and self._steps() > self.printed:
            self.printed = self._steps()
            progress = f"{25 * self.printed} %" if self.total else f"{100 * self.printed} MB"
            print(f"{self.what}: {progress}", file=sys.stderr)

    def _steps(self) -> int:
        return 4 * self.done // self.total if self.total else self.done // 100_000_000

    def _bar(self) -> Any:
        if self.bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                "{task.description}",
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=None)
        return self.bar

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
