"""Escapes untrusted text (file names, class names, summaries) for terminals, spreadsheets and Markdown.

HTML has `html.escape`.
"""

import csv
import html
import logging
import re
from collections.abc import Iterable
from typing import TextIO, TypeVar

Cell = TypeVar("Cell")

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Leading characters that make a spreadsheet evaluate a cell (OWASP, "CSV injection")."""

MARK = "'"
"""Prefix of a cell that a spreadsheet would evaluate otherwise; spreadsheets read it as "this is text"."""


def printable(text: str, *, lines: bool = False) -> str:
    """Escape every character that a terminal could interpret, e.g. as \\x1b.

    Args:
        lines: whether line breaks and tabs are kept.
    """
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


class PrintableFormatter(logging.Formatter):
    """Formats a log record and its stack trace without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)


def say(text: str) -> None:
    """Print `text` with control characters escaped."""
    print(printable(text, lines=True))


def csv_cell(value: Cell) -> Cell | str:
    """Return `value` as a CSV cell that no spreadsheet evaluates; numbers are returned unchanged.

    A text that begins with a character of `FORMULA` or an apostrophe is prefixed with an apostrophe.
    """
    return f"{MARK}{value}" if isinstance(value, str) and value.startswith((*FORMULA, MARK)) else value


class CsvWriter:
    """Writes rows of escaped cells to a CSV file; line breaks of every kind within a cell are quoted."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._writer = csv.writer(self, lineterminator="\r\n")  # otherwise a carriage return would not be quoted

    def writerow(self, cells: Iterable[object]) -> None:
        """Write one row; None is an empty cell."""
        self._writer.writerow([csv_cell(cell) for cell in cells])

    def write(self, line: str) -> int:
        """Called by `csv` with each line."""
        return self._file.write(line.removesuffix("\r\n") + "\n")


def from_csv_cell(text: str) -> str:
    """The inverse of `csv_cell`: removes a leading apostrophe."""
    return text.removeprefix(MARK)


def markdown(text: str) -> str:
    """Escape `text` as one line of Markdown, so that its rendering shows the text unchanged."""
    escaped = re.sub(r"([\\`*\[\]|~$])", r"\\\1", html.escape(printable(text), quote=False))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # within a word an underscore is no markup
