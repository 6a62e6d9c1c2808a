"""Rich's console for text from outside: markup in a name is shown, a control character is written out."""

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from graft.system.escaping import printable

WIDE = 240
"""Columns where the output is a file or a pipe, so that nothing need be cut."""


class PlainConsole(Console):
    """A console on which strings, in tables too, are plain text: no markup, no emoji codes, no escape sequences.

    Styles and markup of Graft's own are written as `rich.text.Text`.
    """

    def __init__(self, *, stderr: bool = False, file: TextIO | None = None, width: int | None = None) -> None:
        in_memory = False if file is not None else None  # no colours there, even with FORCE_COLOR
        super().__init__(
            stderr=stderr, file=file, width=width, markup=False, emoji=False, highlight=False,
            force_terminal=in_memory, force_jupyter=in_memory,
        )  # fmt: skip
        if width is None and not self.is_terminal:
            self.width = WIDE

    def render_str(self, text: str, **options: Any) -> Text:
        """A string of a table or of `print`, escaped before its width is measured."""
        return super().render_str(printable(text, lines=True), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is about to be written, escaped once more for the sake of `Text` made elsewhere."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, lines=True), segment.style)
