"""Writes small tables for tests of data=table."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

Rows = Sequence[Sequence[object]]


def write(file: Path, rows: Rows, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """A table; cells with a delimiter are quoted."""
    with file.open("w", newline="", encoding=encoding) as opened:
        csv.writer(opened, delimiter=delimiter).writerows(rows)
    return file


def parquet(file: Path, rows: Rows) -> Path:
    """A table in Parquet, with the types of the values."""
    arrow = pytest.importorskip("pyarrow")
    header, *values = rows
    columns = {str(name): arrow.array([row[index] for row in values]) for index, name in enumerate(header)}
    from pyarrow.parquet import write_table

    write_table(arrow.table(columns), file)
    return file
