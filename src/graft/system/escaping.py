"""Text from outside (file names, class names, summaries), made safe for where it is shown.

A terminal gets no control characters, a spreadsheet no formulas, a Markdown page no markup. HTML has `html.escape`.
"""

import csv
import html
import logging
import re
from collections.abc import Iterable
from typing import TextIO, TypeVar

Cell = TypeVar("Cell")

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""First characters that make a spreadsheet evaluate a cell (OWASP, "CSV injection")."""

MARK = "'"
"""In front of a cell that a spreadsheet would evaluate, as typed there to say "this is text"."""


def printable(text: str, *, lines: bool = False) -> str:
    """`text` with every character that a terminal could act on written as an escape such as \\x1b.

    Args:
        lines: line breaks and tabs stay.
    """
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


class PrintableFormatter(logging.Formatter):
    """Formats a log record, stack trace included, so that a terminal only prints it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def say(text: str) -> None:
    """Print `text`, with control characters in names written out."""
    print(printable(text, lines=True))


def csv_cell(value: Cell) -> Cell | str:
    """`value` as a CSV cell that no spreadsheet evaluates; numbers are numbers still.

    A text that begins with a character of `FORMULA`, or with an apostrophe, gets an apostrophe in front.
    """
    return f"{MARK}{value}" if isinstance(value, str) and value.startswith((*FORMULA, MARK)) else value


class CsvWriter:
    """Writes rows of `csv_cell`s into `file`, a line each; line breaks of every kind within a cell are quoted."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._writer = csv.writer(self, lineterminator="\r\n")  # else a carriage return would not be quoted

    def writerow(self, cells: Iterable[object]) -> None:
        """One line; None is an empty cell."""
        self._writer.writerow([csv_cell(cell) for cell in cells])

    def write(self, line: str) -> int:
        """What `csv` calls with each line."""
        return self._file.write(line.removesuffix("\r\n") + "\n")


def from_csv_cell(text: str) -> str:
    """What `csv_cell` was given: `text` without its first apostrophe, if it begins with one."""
    return text.removeprefix(MARK)


def markdown(text: str) -> str:
    """`text` on one line, so that Markdown and the HTML made of it show it as it is."""
    escaped = re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(printable(text), quote=False))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # within a word it marks nothing
