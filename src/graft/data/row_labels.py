"""The labels of the rows of a table: one per row; or several, in a cell or in a column of 0 and 1 for each."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.data.table_columns import FLAGS, ChosenColumns
from graft.data.tables import Cell, Columns
from graft.errors import DataError, listed

MINUS_ONE = ("-1", "-1.0")
SEPARATORS = (";", "|", ",")
LISTED = 5
"""Number of values that a message names."""


@dataclass(frozen=True)
class RowLabels:
    """The labels of each row.

    Attributes:
        rows: the different labels of each row, in their order.
        several: whether a row may have any number of labels; else it has one, or none where its cell is empty.
        classes: the labels that there are, where the columns determine them and their order.
        notes: for the reader of the results, one sentence each.
    """

    rows: Sequence[tuple[str, ...]]
    several: bool
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def labels_of_rows(columns: Columns, chosen: ChosenColumns, file: Path, separator: str | None) -> RowLabels:
    """The labels of each row of a table.

    Args:
        columns: of the table.
        chosen: which of them have the labels.
        file: of the table, for messages.
        separator: of the labels in a cell; None: a cell is one label, unless it is a list.

    Raises:
        DataError: a one-hot column has other values than yes and no; names it and the row.
    """
    if chosen.one_hot:
        return _of_flags(columns, chosen.labels, file)
    cells = columns.cells[chosen.labels[0]]
    rows = [_labels(cell, separator) for cell in cells]
    several = separator is not None or any(isinstance(cell, tuple) for cell in cells)
    return RowLabels(rows, several, notes=() if several else tuple(_hints(rows)))


def _labels(cell: Cell, separator: str | None) -> tuple[str, ...]:
    """The different labels in a cell, in their order."""
    parts: Iterable[str] = cell if isinstance(cell, tuple) else cell.split(separator) if separator else [cell]
    labels = (unicodedata.normalize("NFC", part.strip()) for part in parts)
    return tuple(dict.fromkeys(label for label in labels if label))


def _hints(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """A note if some labels seem to be lists of others."""
    labels = Counter(label for row in rows for label in row)
    for separator in SEPARATORS:
        parts = {label: label.split(separator) for label in labels if separator in label}
        lists = [label for label, each in parts.items() if any(part.strip() in labels for part in each)]
        if lists:
            count = sum(labels[label] for label in lists)
            yield (
                f"{count:,} labels seem to be lists, e.g. {lists[0]}: with data.label_separator='{separator}' an image "
                "has several labels"
            )
            return


def _of_flags(columns: Columns, names: Sequence[str], file: Path) -> RowLabels:
    """The labels of one-hot columns, which are called as the labels are.

    With 1 and -1, -1 is no. With 1, 0 and -1 it could also mean unknown, so it is refused; an empty cell is no.
    """
    values = {name: [str(cell).lower() for cell in columns.cells[name]] for name in names}
    ternary = {"0", "0.0"} & {value for column in values.values() for value in column}
    known = FLAGS if ternary else {**FLAGS, **dict.fromkeys(MINUS_ONE, 1)}
    empty = 0
    rows: list[list[str]] = [[] for _ in columns.rows]
    for name, column in values.items():
        label = unicodedata.normalize("NFC", name)
        for number, value in enumerate(column):
            if value and value not in known:
                raise DataError(_unknown_flag(columns, name, values[name], known, number, file))
            empty += not value
            if value and known[value] == 0:
                rows[number].append(label)
    note = (f"{empty:,} empty cells of the label columns count as 0",) if empty else ()
    return RowLabels(
        [tuple(row) for row in rows], True, tuple(unicodedata.normalize("NFC", name) for name in names), note
    )


def _unknown_flag(
    columns: Columns, name: str, column: Sequence[str], known: dict[str, int], number: int, file: Path
) -> str:
    others = Counter(value for value in column if value and value not in known)
    text = f"data.table={file}: column {name} has {listed(others, LISTED, counted=False)} ({columns.rows[number]})"
    if set(others) <= set(MINUS_ONE):
        return (
            f"{text} next to 0 and 1, which may mean no or unknown.\nReplace it by 0 where it means no, and remove the "
            "rows or columns where it means unknown."
        )
    return f"{text}; a label's column has 0 and 1, true and false, or yes and no.\nLeave it out of data.label_columns."
