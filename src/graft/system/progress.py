"""Progress bar on stderr, shown on a terminal only."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from graft.system.terminal import PlainConsole


class Bar:
    """A progress bar; `print_line` prints a line above it."""

    def __init__(self, progress: Progress, what: str, total: int | None) -> None:
        self.progress = progress
        self.task = progress.add_task(what, total=total)

    def advance(self, by: int = 1) -> None:
        self.progress.advance(self.task, by)

    def set_total(self, total: int) -> None:
        self.progress.update(self.task, total=total)

    def print_line(self, text: str) -> None:
        """Print a line on stderr."""
        self.progress.console.print(text, soft_wrap=True)

    @property
    def visible(self) -> bool:
        return not self.progress.disable


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Bar]:
    """Show a progress bar while the block runs.

    Args:
        what: what is counted, e.g. "images".
        total: number of steps; None while unknown.
    """
    console = PlainConsole(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, what, total)
