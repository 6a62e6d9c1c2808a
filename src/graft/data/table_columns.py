"""The columns of a table that have the images, labels, splits and groups: chosen, or recognised by their names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from graft.data.layout import SPLIT_NAMES
from graft.data.reading import EXTENSIONS
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
    """Names of the columns that are read; None: there is none.

    Attributes:
        labels: one column of labels; or with `one_hot` a column for each label, which says whether an image has it.
    """

    image: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    one_hot: bool

    @property
    def names(self) -> list[str]:
        """All columns, each once."""
        each = (self.image, *self.labels, self.split, self.group)
        return list(dict.fromkeys(name for name in each if name is not None))


def choose_columns(
    table: Table,
    image: str | None,
    label: str | None,
    split: str | bool | None,
    group: str | bool | None,
    one_hot: Sequence[str] | None,
) -> tuple[ChosenColumns, list[str]]:
    """(columns, notes on those that were recognised by their names)."""
    given = {"image_column": image, "label_column": label, "split_column": split, "group_column": group}
    for key, value in given.items():
        if value is True:
            raise ConfigError(f"data.{key}=true: must be the name of a column, or false for none.")
        if isinstance(value, str):
            _require_column(table, key, value)
    for name in one_hot or ():
        _require_column(table, "label_columns", name)
    if label is not None and one_hot is not None:
        raise ConfigError(
            f"data.label_column={label} and data.label_columns=[{','.join(one_hot)}] disagree: the labels are in one "
            "column, or each has its own.\nGive one of them."
        )
    notes: list[str] = []
    taken = {value for value in given.values() if isinstance(value, str)} | set(one_hot or ())
    if image is None:
        image = recognised_column(table, "image", IMAGE_COLUMNS, taken, "Choose with data.image_column=COLUMN.")
    taken.add(image)
    if split is None:
        named = [name for name in table.names if _plain(name) in (*SPLIT_COLUMNS, *SPLIT_FLAGS) and name not in taken]
        split = _only("split", [name for name in named if _is_split(table, name)], notes)
    taken.add(str(split))
    labels = (label,) if label is not None else tuple(one_hot or _label_columns(table, taken))
    taken.update(labels)
    if group is None:
        named = [name for name in table.names if _plain(name) in GROUP_COLUMNS and name not in taken]
        group = _only("group", named, notes)
    several = bool(one_hot) or len(labels) > 1
    chosen = ChosenColumns(image, labels, str(split) if split else None, str(group) if group else None, several)
    shown = {"image_column": image, "split_column": chosen.split, "group_column": chosen.group}
    shown |= {"label_columns": f"[{','.join(labels)}]"} if several else {"label_column": labels[0]}
    guessed = {key: name for key, name in shown.items() if given.get(key, one_hot) is None and name is not None}
    if guessed:
        columns = ", ".join(f"data.{key}={name}" for key, name in guessed.items())
        notes.insert(0, f"columns recognised in {table.path.name}: {columns}")
    return chosen, notes


def _only(role: str, found: Sequence[str], notes: list[str]) -> str | None:
    """The only column that may have a role; None, with a note, if there are several."""
    if len(found) > 1:
        names = listed(found, LISTED, counted=False)
        notes.append(f"columns {names} may each be the {role}; none is used, see data.{role}_column")
    return found[0] if len(found) == 1 else None


def _require_column(table: Table, key: str, name: str) -> None:
    """Raise ConfigError unless the table has a column of this name; suggests the nearest."""
    if name not in table.names:
        raise ConfigError(
            f"data.{key}={name}: data.table={table.path} has no such column.{nearest(name, table.names)}"
            f"\nIt has {listed(table.names, LISTED, counted=False)}."
        )


def _label_columns(table: Table, taken: set[str]) -> Sequence[str]:
    """The column of a known name, or the only one whose role is open; or several if all others are one-hot."""
    others = [name for name in table.names if name and name not in taken]
    if len(others) > 1 and not any(_plain(name) in LABEL_COLUMNS[0] for name in others):
        others = [name for name in others if _plain(name) not in GROUP_COLUMNS]
        if len(others) > 1 and _are_flags(table, others):
            return others
    if len(others) == 1:
        return others
    way_out = "Choose with data.label_column=COLUMN; or data.label_columns=[A,B] if each label has a column of 0 and 1."
    return [recognised_column(table, "label", LABEL_COLUMNS, taken, way_out)]


def _are_flags(table: Table, names: Sequence[str]) -> bool:
    """Whether each of these columns has nothing but yes and no, so that they can be recognised as one-hot labels."""
    if len(set(table.names)) < len(table.names):
        return False
    columns = table.read(names)
    return bool(columns.rows) and all(
        {str(cell).lower() for cell in columns.cells[name]} <= {*FLAGS, "-1", "-1.0", ""} for name in names
    )


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
