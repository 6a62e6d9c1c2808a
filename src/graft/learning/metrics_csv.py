"""Reads metrics.csv, also if its last line is incomplete because the run was killed."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from graft.system.files import read_regular

Row = dict[str, float]

LARGEST = 2**28
"""Maximum bytes of a table; a million steps of ten columns need half of that."""


@dataclass(frozen=True)
class MetricsTable:
    """Content of metrics.csv.

    Attributes:
        columns: names, in order; empty in a file without a whole first line.
        rows: readable rows, each with its metrics.
        torn: the last line was incomplete and is dropped.
        damaged: number of other lines that are dropped.
    """

    columns: list[str]
    rows: list[Row]
    torn: bool
    damaged: int


def read_metrics(path: Path, largest: int = LARGEST) -> MetricsTable:
    """The table in `path`, without a torn last line and without lines that are damaged.

    Args:
        path: the file.
        largest: maximum size in bytes.

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
