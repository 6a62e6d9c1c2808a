"""Rich console for untrusted text: markup in names is printed literally, control characters are escaped."""

import io
import logging
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from graft.system.escaping import printable

log = logging.getLogger("graft")

WIDE = 240
"""Width in columns if the output is a file or a pipe, so that tables are not truncated."""


class PlainConsole(Console):
    """Console that prints strings, in tables too, as plain text: no markup, emoji codes or escape sequences.

    Graft's own styles are written as `rich.text.Text`.
    """

    def __init__(self, *, stderr: bool = False, file: TextIO | None = None, width: int | None = None) -> None:
        in_memory = False if file is not None else None  # no colours, even with FORCE_COLOR
        super().__init__(
            stderr=stderr, file=file, width=width, markup=False, emoji=False, highlight=False,
            force_terminal=in_memory, force_jupyter=in_memory,
        )  # fmt: skip
        if width is None and not self.is_terminal:
            self.width = WIDE

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a string of a table or of `print` before its width is measured."""
        return super().render_str(printable(text, lines=True), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape the segments to be written once more, for `Text` objects created elsewhere."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)


def log_table(table: RenderableType) -> None:
    """Log a table: to the terminal and train.log."""
    text = io.StringIO()
    PlainConsole(file=text, width=110).print(table)
    log.info("%s", text.getvalue().rstrip())
