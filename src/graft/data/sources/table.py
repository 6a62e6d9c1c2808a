"""Images listed in a table with a column of file names and a column of labels, in CSV, TSV or Parquet."""

import itertools
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graft.data.images import ImageSet
from graft.data.labels import Labels, multi_hot
from graft.data.layout import (
    CONTRADICTION,
    NO_FILE,
    NO_LABEL,
    NO_NAME,
    NO_SPLIT,
    REPEATED,
    SPLIT_NAMES,
    walk_images,
)
from graft.data.named_files import NamedFiles
from graft.data.packed import Packed
from graft.data.row_labels import RowLabels, labels_of_rows
from graft.data.sources.base import Source, require_test_fraction
from graft.data.table_columns import (
    IMAGE_COLUMNS,
    SPLIT_WORDS,
    ChosenColumns,
    choose_columns,
    recognised_column,
    split_of,
)
from graft.data.tables import Columns, open_table, require_text_options
from graft.errors import DataError, listed, nearest

LISTED = 10
"""Number of columns, values or images that a message names."""


def find(root: Path | None, arguments: Mapping[str, Any]) -> Path:
    """The folder that the paths in the table are relative to: data.root, by default the folder of the table.

    Raises:
        DataError: there is no such table.
    """
    if arguments.get("table") is None:
        raise DataError("data.table is not set, and data=table needs a file.\nGive data.table=FILE.")
    file = _table_file(str(arguments["table"]), root)
    return file.parent if root is None else root


def load(
    root: Path,
    *,
    table: str,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | bool | None = None,
    group_column: str | bool | None = None,
    label_separator: str | None = None,
    label_columns: list[str] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    header: bool = True,
    test_fraction: float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Read the images that a table lists.

    Labels are the text of their cells. The order of the rows does not matter. An image has several labels (or none) if
    `label_separator` or `label_columns` is given, or the column of labels is of lists in Parquet.

    Args:
        root: folder that relative paths start from.
        table: the file; a relative path is looked for in the working directory, then in `root`.
        image_column: column of the paths, with or without the ending of the file.
        label_column: column of the labels.
        split_column: column of train, val and test; false: none.
        group_column: column of what must not be in two splits, e.g. the patient; false: none. Null columns are
            recognised by their names.
        label_separator: what separates several labels of one image.
        label_columns: columns of 0 and 1 (or true and false, yes and no, 1 and -1), one for each label.
        delimiter, encoding, header: of a text file, see `graft.data.tables.open_table`.
        test_fraction: fraction of each class to test on where no row is a val or test image, in (0, 1).
        split_seed: seed of that draw.

    Raises:
        ConfigError: a column that does not exist (names the nearest) or cannot be recognised, or a value out of range.
        DataError: the file cannot be read, no row has a file, a URL instead of a path, an unknown split, or a one-hot
            column with other values.
    """
    require_test_fraction(test_fraction)
    require_text_options(delimiter, encoding)
    file = _table_file(table, root)
    opened = open_table(file, delimiter=delimiter, encoding=encoding, header=header)
    chosen, notes = choose_columns(opened, image_column, label_column, split_column, group_column, label_columns)
    columns = opened.read(chosen.names)
    labels = labels_of_rows(columns, chosen, file, label_separator)
    records, unused = _records(columns, chosen, root, file, labels)
    if not records:
        raise DataError(_no_images(file, root, columns, chosen, unused))
    notes += labels.notes
    classes = labels.classes or _class_order({label for record in records for label in record.labels})
    parts = {
        split: _image_set([each for each in records if each.split == split], classes, labels.several)
        for split in SPLIT_NAMES
    }
    published = {split: images for split, images in parts.items() if len(images)}
    if "train" not in published:
        raise DataError(f"data.table={file}: column {chosen.split} has no train rows, only {', '.join(published)}.")
    groups = {record.name: record.group for record in records if record.group}
    if chosen.group is not None and len(groups) < len(records):
        notes.append(f"{len(records) - len(groups):,} images without {chosen.group} are groups of their own")
    return Source(
        classes,
        published["train"],
        published.get("val"),
        published.get("test"),
        notes=tuple(notes),
        test_fraction=test_fraction if len(published) == 1 else None,
        split_seed=split_seed,
        test_on_rest=False,
        group_of=_group_function(groups) if chosen.group is not None else None,
        unused=tuple(unused),
        searched=_searched(root, file, records),
        files=(file,),
    )


def listed_images(file: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of the image of each row of a table, in order; paths start from the folder of the table.

    Raises:
        ConfigError: the column of the images has no known name.
        DataError: the table cannot be read.
    """
    table = open_table(file)
    column = recognised_column(table, "image", IMAGE_COLUMNS, set(), "Call it file.")
    files = NamedFiles(file.parent)
    for cell in map(_text, table.read([column]).cells[column]):
        if cell:
            name, path = files.find(cell)
            yield name, Path(path or os.path.join(file.parent, name))


def _table_file(table: str, root: Path | None) -> Path:
    """The file of data.table, in the working directory or in `root`; raises DataError if it is in neither."""
    path = Path(table).expanduser()
    candidates = [path, *([root / path] if root is not None else [])]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    folder = path.parent if path.parent.is_dir() else Path()
    hint = nearest(path.name, (entry.name for entry in folder.iterdir()), most=1)
    also = f", neither in the working directory nor in data.root={root}" if root and not path.is_absolute() else ""
    raise DataError(f"data.table={table}: there is no such file{also}.{hint}")


# Rows


@dataclass(frozen=True)
class _Record:
    """An image of the table.

    Attributes:
        name: POSIX path relative to the root.
        path: of the file.
        labels: exactly one, unless images have several.
        split: "train", "val" or "test".
        group: "" for none.
        row: where it is in the table.
    """

    name: str
    path: str
    labels: tuple[str, ...]
    split: str
    group: str
    row: str

    def values(self) -> tuple[str, str, str]:
        """What the row says about its image."""
        return " and ".join(sorted(self.labels)), self.split, self.group


def _records(
    columns: Columns, chosen: ChosenColumns, root: Path, file: Path, found_labels: RowLabels
) -> tuple[list[_Record], list[tuple[str, str]]]:
    """(images, (row, reason) of what is not used)."""
    files = NamedFiles(root)
    splits = None if chosen.split is None else _splits(columns.cells[chosen.split], chosen.split, file)
    found: dict[str, _Record] = {}
    contradicting: dict[str, list[_Record]] = {}
    unused: list[tuple[str, str]] = []
    for number, row in enumerate(columns.rows):
        cell = _text(columns.cells[chosen.image][number])
        if not cell:
            unused.append((row, NO_NAME))
            continue
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", cell):
            raise DataError(
                f"data.table={file}: {row} has the URL {cell}; only files are read.\nDownload the images, and write "
                "their file names into the table."
            )
        name, path = files.find(cell)
        labels = found_labels.rows[number]
        split = "train" if splits is None else splits[number]
        group = "" if chosen.group is None else _text(columns.cells[chosen.group][number])
        reason = (
            NO_FILE
            if path is None
            else NO_LABEL
            if not (labels or found_labels.several)
            else NO_SPLIT
            if not split
            else None
        )
        if path is None or reason is not None:
            unused.append((f"{name} ({row})", str(reason)))
            continue
        record = _Record(name, path, labels, split, group, row)
        first = found.setdefault(os.path.normpath(path), record)
        if first is not record and first.values() == record.values():
            unused.append((f"{name} ({row})", REPEATED))
        elif first is not record:
            contradicting.setdefault(os.path.normpath(path), [first]).append(record)
    for path, records in contradicting.items():
        del found[path]
        unused.append((f"{records[0].name} ({_contradiction(records)})", CONTRADICTION))
    return list(found.values()), unused


def _contradiction(records: Sequence[_Record]) -> str:
    """The values in which rows of the same image differ: "line 2: cat; line 7: dog"."""
    differing = [number for number, values in enumerate(zip(*(each.values() for each in records), strict=True))
                 if len(set(values)) > 1]  # fmt: skip
    said = (f"{each.row}: {', '.join(each.values()[number] or 'empty' for number in differing)}" for each in records)
    return "; ".join(itertools.islice(said, LISTED))


def _text(cell: str | tuple[str, ...]) -> str:
    return cell if isinstance(cell, str) else " ".join(cell)


def _splits(cells: Sequence[str | tuple[str, ...]], column: str, file: Path) -> list[str]:
    """The split of each row, "" for an empty cell; raises DataError for an unknown word."""
    values = Counter(map(_text, cells))
    known = {value: split_of(column, value) if value else "" for value in values}
    unknown = [f"{value} ({values[value]:,} rows)" for value, split in known.items() if split is None]
    if unknown:
        raise DataError(
            f"data.table={file}: column {column} has {listed(unknown, LISTED, counted=False)}.\n"
            f"A split is train, val or test (also "
            f"{', '.join(sorted(SPLIT_WORDS.keys() - SPLIT_NAMES.keys()))}). Rename them, or set "
            "data.split_column=false to draw the splits."
        )
    return [known[_text(cell)] or "" for cell in cells]


# Results


def _class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The classes, sorted; in the order of their values if all are integers, so that 10 follows 9."""
    ordered = sorted(labels)
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in ordered)
    return tuple(sorted(ordered, key=int) if numbers else ordered)


def _image_set(records: Sequence[_Record], classes: Sequence[str], several: bool) -> ImageSet:
    """The images by class and then by name, as `read_class_folders` sorts them; with several labels by name."""
    index = {name: label for label, name in enumerate(classes)}
    if several:
        records = sorted(records, key=lambda record: record.name)
        labels: Labels = multi_hot([[index[label] for label in record.labels] for record in records], len(classes))
    else:
        records = sorted(records, key=lambda record: (index[record.labels[0]], record.name, record.path))
        labels = np.array([index[record.labels[0]] for record in records], dtype=np.int64)
    return ImageSet(
        names=Packed.of((record.name for record in records), str),
        labels=labels,
        paths=Packed.of((record.path for record in records), Path),
    )


def _group_function(groups: Mapping[str, str]) -> Callable[[str], str]:
    return lambda name: groups.get(name, name)


def _searched(root: Path, file: Path, records: Sequence[_Record]) -> tuple[str, ...] | None:
    """Folders in `root` that have images of the table; None for all of `root`.

    In the table's own folder there may be anything, e.g. the outputs of runs.
    """
    if os.path.abspath(root) != os.path.abspath(file.parent):
        return None
    tops = {record.name.partition("/")[0] if "/" in record.name else "." for record in records}
    inside = sorted(top for top in tops if top not in ("..", ""))
    return None if "." in inside else tuple(inside)


def _no_images(
    file: Path, root: Path, columns: Columns, chosen: ChosenColumns, unused: Sequence[tuple[str, str]]
) -> str:
    """Error message for a table without a usable row; suggests the folder in which the files are."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(why for _, why in unused).most_common())
    text = f"data.table={file}: none of its {len(columns.rows):,} rows can be used ({reasons or 'there is none'})."
    missing = next((name for name, reason in unused if reason == NO_FILE), None)
    if missing is None:
        return text
    example = next(filter(None, map(_text, columns.cells[chosen.image]))).replace("\\", "/")
    text += f"\nThe first file looked for is {os.path.join(root, example)}."
    folder = _folder_with(root, example)
    if folder is not None:
        return f"{text} It is in {folder}: set data.root={folder}."
    return f"{text} Set data.root to the folder that the paths in column {chosen.image} start from."


def _folder_with(root: Path, image: str) -> Path | None:
    """The folder in `root` from which the path `image` leads to a file, with or without its ending."""
    for name, path in itertools.islice(walk_images(root), 100_000):
        for tail in (name, posixpath.splitext(name)[0]):
            if tail.endswith(f"/{image}"):
                return path.parents[image.count("/")]
    return None
