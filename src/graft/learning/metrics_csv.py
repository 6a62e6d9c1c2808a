"""Reading metrics.csv, also one whose last line was cut short when its run was killed."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from graft.system.files import read_regular

Row = dict[str, float]

LARGEST = 2**28
"""Bytes of a table; a million steps logged in ten columns have half of that."""


@dataclass(frozen=True)
class MetricsTable:
    """What metrics.csv holds.

    Attributes:
        columns: names, in order; empty in a file without a whole first line.
        rows: those that can be read, each with the metrics that it has.
        torn: the last line was not written to its end, and was dropped.
        damaged: other lines that were dropped.
    """

    columns: list[str]
    rows: list[Row]
    torn: bool
    damaged: int


def read_metrics(path: Path, largest: int = LARGEST) -> MetricsTable:
    """The table in `path`, without a torn last line and without lines that are damaged.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
    """
    text = read_regular(path, largest).decode("utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows: list[Row] = []
    columns: list[str] = []
    damaged = 0
    lines = csv.reader(io.StringIO(whole, newline=""))
    while True:
        try:
            cells = next(lines)
            if not columns:
                columns = cells
            elif cells:
                rows.append(_row(columns, cells))
        except StopIteration:
            return MetricsTable(columns, rows, len(whole) < len(text), damaged)
        except (ValueError, ArithmeticError, csv.Error):
            damaged += 1


def _row(columns: list[str], cells: list[str]) -> Row:
    row = {name: float(cell) for name, cell in zip(columns, cells, strict=True) if cell}
    if "step" not in row or row["step"] != int(row["step"]):
        raise ValueError("no step")
    return row
