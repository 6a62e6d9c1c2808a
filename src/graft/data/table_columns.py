"""The columns of a table that have the images, labels, splits and groups: chosen, or recognised by their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from graft.data.images import EXTENSIONS
from graft.data.layout import SPLIT_NAMES
from graft.data.tables import Table
from graft.errors import ConfigError, listed, nearest

IMAGE_COLUMNS = (
    (
        *("file", "filename", "file_name", "filepath", "file_path", "path", "photo", "picture"),
        *("image", "image_file", "image_filename", "image_name", "image_path", "img", "img_name", "img_path"),
    ),
    ("image_id", "img_id", "id", "id_code"),
)
LABEL_COLUMNS = (
    ("label", "labels", "class", "class_name", "category", "target", "label_name", "species", "breed", "diagnosis"),
)
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
GROUP_COLUMNS = tuple(
    name + ending
    for name in ("group", "patient", "subject", "person", "camera", "scene", "site")
    for ending in ("", "_id")
)
"""Names by which a column is recognised, in lower case with underscores; of the first tuples before later ones."""

SPLIT_WORDS = {word: split for split, words in SPLIT_NAMES.items() for word in words} | {"dev": "val"}
SPLIT_FLAGS = {"is_train": ("train", "test"), "is_training": ("train", "test"), "is_test": ("test", "train"),
               "is_val": ("val", "train"), "is_valid": ("val", "train"), "is_validation": ("val", "train")}  # fmt: skip
"""Name of a column of booleans -> splits of its true and of its false rows."""
FLAGS = {"true": 0, "1": 0, "1.0": 0, "yes": 0, "false": 1, "0": 1, "0.0": 1, "no": 1}

LISTED = 10
"""Number of columns that a message names."""


@dataclass(frozen=True)
class ChosenColumns:
    """Names of the columns that are read; None: there is none."""

    image: str
    label: str
    split: str | None
    group: str | None


def choose_columns(
    table: Table, image: str | None, label: str | None, split: str | bool | None, group: str | bool | None
) -> tuple[ChosenColumns, list[str]]:
    """(columns, notes on those that were recognised by their names)."""
    given = {"image_column": image, "label_column": label, "split_column": split, "group_column": group}
    for key, value in given.items():
        if value is True:
            raise ConfigError(f"data.{key}=true: must be the name of a column, or false for none.")
        if isinstance(value, str) and value not in table.names:
            known = listed(table.names, LISTED, counted=False)
            raise ConfigError(
                f"data.{key}={value}: data.table={table.path} has no such column.{nearest(value, table.names)}"
                f"\nIt has {known}."
            )
    notes: list[str] = []
    taken = {value for value in given.values() if isinstance(value, str)}
    if image is None:
        image = recognised_column(table, "image", IMAGE_COLUMNS, taken, "Choose with data.image_column=COLUMN.")
    taken.add(image)
    if split is None:
        named = [name for name in table.names if _plain(name) in (*SPLIT_COLUMNS, *SPLIT_FLAGS) and name not in taken]
        split = _only("split", [name for name in named if _is_split(table, name)], notes)
    taken.add(str(split))
    if label is None:
        label = _label_column(table, taken)
    taken.add(label)
    if group is None:
        named = [name for name in table.names if _plain(name) in GROUP_COLUMNS and name not in taken]
        group = _only("group", named, notes)
    chosen = ChosenColumns(image, label, str(split) if split else None, str(group) if group else None)
    guessed = {key: name for key, name in vars(chosen).items() if given[f"{key}_column"] is None and name is not None}
    if guessed:
        columns = ", ".join(f"data.{key}_column={name}" for key, name in guessed.items())
        notes.insert(0, f"columns recognised in {table.path.name}: {columns}")
    return chosen, notes


def _only(role: str, found: Sequence[str], notes: list[str]) -> str | None:
    """The only column that may have a role; None, with a note, if there are several."""
    if len(found) > 1:
        names = listed(found, LISTED, counted=False)
        notes.append(f"columns {names} may each be the {role}; none is used, see data.{role}_column")
    return found[0] if len(found) == 1 else None


def _label_column(table: Table, taken: set[str]) -> str:
    """The column of a known name, or the only one whose role is open."""
    others = [name for name in table.names if name and name not in taken]
    if len(others) > 1 and not any(_plain(name) in LABEL_COLUMNS[0] for name in others):
        others = [name for name in others if _plain(name) not in GROUP_COLUMNS]
    if len(others) == 1:
        return others[0]
    return recognised_column(table, "label", LABEL_COLUMNS, taken, "Choose with data.label_column=COLUMN.")


def _plain(name: str) -> str:
    """A column name in lower case with underscores: "Image ID" and "imageId" become "image_id"."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")


def recognised_column(table: Table, role: str, tiers: Sequence[Sequence[str]], taken: set[str], way_out: str) -> str:
    """The only column of a known name.

    Raises:
        ConfigError: there is none, or there are several; lists the columns and gives the way out.
    """
    free = [name for name in table.names if name not in taken]
    for tier in tiers:
        found = [name for name in free if _plain(name) in tier]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"{table.path}: columns {listed(found, LISTED, counted=False)} may each be the {role}.\n{way_out}"
            )
    first = ""
    if any(name.lower().endswith(EXTENSIONS) for name in table.names):
        first = " Without a header, add data.header=false; the columns are then called 1, 2, …."
    names = listed(free, LISTED, counted=False)
    raise ConfigError(
        f"{table.path}: none of the columns {names} has a name that is known for the {role}.{first}\n{way_out}"
    )


def _is_split(table: Table, name: str) -> bool:
    """Whether the values of a column are splits, so that it can be recognised as such."""
    values = {str(cell) for cell in table.read([name]).cells[name]} - {""}
    return bool(values) and all(split_of(name, value) for value in values)


def split_of(column: str, value: str) -> str | None:
    """The split that a value means; None for an unknown word."""
    if (flags := SPLIT_FLAGS.get(_plain(column))) is not None and value.lower() in FLAGS:
        return flags[FLAGS[value.lower()]]
    return SPLIT_WORDS.get(value.lower())
