"""The index of a packed data set: a JSON file, and tables of one row per image that are mapped into memory.

`index.json` lists the shards in the form that WebDataset's `wids` reads, and describes the data set. The tables are
NumPy files: `images.npy` has a `ROW` per image in the order of the data set, `names.npy` the names, concatenated, and
`name_ends.npy` the end of each. Groups are stored likewise, and several labels per image in `labels.npy`. Mapped files
are shared by all processes, and stay on disk until they are read.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.data.packed import Packed
from graft.errors import DataError
from graft.system.files import sha256, write_atomically
from graft.system.values import (
    Check,
    UnexpectedValue,
    flag,
    integer,
    mapping,
    number,
    optional,
    read_values,
    sequence,
    text,
)

INDEX = "index.json"
FORMAT = "graft-shards-1"
SPLITS = ("train", "val", "test")
IMAGES, LABELS = "images.npy", "labels.npy"
TEXTS = {"names": ("names.npy", "name_ends.npy"), "groups": ("groups.npy", "group_ends.npy")}
"""Column of texts → files of the texts, concatenated, and of the end of each."""

ROW = np.dtype(
    [("label", "<i4"), ("shard", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("digest", "V16"), ("identity", "S16")]
)
"""Class index (-1 with several labels per image), index of the shard, where the file of the image is in it, and the
hashes of `graft.data.contents`."""

MANY = 10**9
NATURAL = integer(0, 2**62)


@dataclass(frozen=True)
class Shard:
    """A tar file.

    Attributes:
        url: its name.
        nsamples: number of images in it.
        filesize: in bytes.
        sha256: in hex.
    """

    url: str
    nsamples: int
    filesize: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The index of a packed data set.

    Attributes:
        classes: class names.
        counts: split → number of images; the rows of train come before those of val and of test.
        shards: the tar files.
        rows: `ROW` [N].
        names: of the images, length N.
        groups: of the images, length N; None where the data set has none.
        labels: zeros and ones, int8 [N, C]; None with one class per image.
        faults: row → (kind, reason) of the images that are unreadable.
        split: test_fraction, split_seed and test_on_rest of the `Source`.
        notes, unused: of the `Source`.
    """

    classes: tuple[str, ...]
    counts: Mapping[str, int]
    shards: tuple[Shard, ...]
    rows: npt.NDArray[np.void]
    names: Packed[str]
    groups: Packed[str] | None
    faults: Mapping[int, tuple[str, str]]
    split: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    labels: npt.NDArray[np.int8] | None = None

    def write(self, folder: Path, described: Mapping[str, Any]) -> None:
        """Write the tables, and then index.json, which makes the data set complete.

        Args:
            folder: of the shards.
            described: further entries of index.json, for people.
        """
        files = {IMAGES: write_array(folder / IMAGES, self.rows)}
        if self.labels is not None:
            files[LABELS] = write_array(folder / LABELS, self.labels.reshape(-1))
        columns = {"names": self.names} | ({} if self.groups is None else {"groups": self.groups})
        for column, packed in columns.items():
            texts, ends = TEXTS[column]
            files[texts] = write_array(folder / texts, np.frombuffer(packed.text, np.uint8))
            files[ends] = write_array(folder / ends, packed.ends)
        content = {
            "wids_version": 1,
            "format": FORMAT,
            **described,
            "classes": self.classes,
            "splits": self.counts,
            **self.split,
            "notes": self.notes,
            "unused": self.unused,
            "unreadable": [[row, *fault] for row, fault in sorted(self.faults.items())],
            "tables": files,
            "shardlist": [asdict(shard) for shard in self.shards],
        }
        write_atomically(folder / INDEX, f"{json.dumps(content, indent=1)}\n".encode())


def write_array(file: Path, values: npt.NDArray[Any]) -> dict[str, Any]:
    """Write an array; returns size and SHA-256 of its file."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(values), allow_pickle=False)
    write_atomically(file, content.getvalue())
    return {"filesize": len(content.getvalue()), "sha256": hashlib.sha256(content.getbuffer()).hexdigest()}


def read_index(content: bytes, where: str, table: Callable[[str, int, str], Path]) -> Index:
    """Read and check an index.

    Args:
        content: of index.json.
        where: its address, for messages.
        table: the local path of the table of this name, size and SHA-256.

    Raises:
        DataError: another format, or tables that are damaged or contradict each other.
        RecordError: a value of a wrong type.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no JSON ({error}).") from error
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        raise DataError(f"{where}: is not an index of graft pack, or of another version.\nPack the data set again.")
    checked = read_values(values, CHECKS, where)
    missing = CHECKS.keys() - checked.keys()
    if missing:
        raise DataError(f"{where}: has no {', '.join(sorted(missing))}; it is incomplete.")
    counts = read_values(checked["splits"], dict.fromkeys(SPLITS, NATURAL), where, "splits")
    tables = {name: read_values(each, TABLE, where, f"tables.{name}") for name, each in checked["tables"].items()}
    shards = tuple(Shard(**read_values(each, SHARD, where, "shardlist")) for each in checked["shardlist"])

    def array(name: str, kind: npt.DTypeLike) -> npt.NDArray[Any]:
        if name not in tables:
            raise DataError(f"{where}: has no table {name}; it is incomplete.")
        described = tables[name]
        return read_array(table(name, described["filesize"], described["sha256"]), described["sha256"], kind)

    def texts(column: str) -> Packed[str]:
        content, ends = (array(file, kind) for file, kind in zip(TEXTS[column], ("u1", "<i8"), strict=True))
        if len(ends) != len(rows) or (len(ends) and (np.diff(ends, prepend=0).min() < 0 or ends[-1] != len(content))):
            raise DataError(f"{where}: the table of {column} does not fit the images.")
        return Packed(content.data, ends, str)

    rows = array(IMAGES, ROW)
    labels = array(LABELS, "i1") if LABELS in tables else None
    _check_rows(rows, labels, counts, shards, len(checked["classes"]), where)
    return Index(
        classes=checked["classes"],
        counts=counts,
        shards=shards,
        rows=rows,
        names=texts("names"),
        groups=texts("groups") if TEXTS["groups"][0] in tables else None,
        faults={row: (kind, reason) for row, kind, reason in checked["unreadable"]},
        split={key: checked[key] for key in SPLIT},
        notes=checked["notes"],
        unused=checked["unused"],
        labels=None if labels is None else labels.reshape(len(rows), -1),
    )


def read_array(file: Path, digest: str, kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of a file, mapped into memory.

    Raises:
        DataError: its checksum is not `digest`, or it has another type.
    """
    try:
        if sha256(file) != digest:
            raise DataError(f"{file}: its checksum is not that of {INDEX}.\nCopy the packed data set again.")
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
    if values.dtype != np.dtype(kind) or values.ndim != 1:
        raise DataError(f"{file}: is a table of {values.dtype}, not of {np.dtype(kind)}.")
    return values.view(np.ndarray)


def _check_rows(
    rows: npt.NDArray[np.void],
    labels: npt.NDArray[np.int8] | None,
    counts: Mapping[str, int],
    shards: Sequence[Shard],
    classes: int,
    where: str,
) -> None:
    """Refuse rows that name no class, labels of other images, or bytes outside of a shard."""
    sizes = np.array([shard.filesize for shard in shards], dtype=np.int64)
    inside = len(rows) == sum(counts.values())
    if inside and len(rows):
        inside = rows["shard"].min() >= 0 and rows["shard"].max() < len(shards)
        if labels is None:
            inside = inside and rows["label"].min() >= 0 and rows["label"].max() < classes
        else:
            inside = inside and len(labels) == len(rows) * classes and bool(np.isin(labels, (0, 1)).all())
        inside = inside and min(rows["offset"].min(), rows["size"].min()) >= 0
        inside = inside and bool((rows["offset"] + rows["size"] <= sizes[rows["shard"]]).all())
    if not inside:
        raise DataError(f"{where}: {IMAGES} does not fit it.\nCopy the packed data set again.")


def _matching(pattern: str, expected: str) -> Check:
    """Check for a text that matches `pattern`; names in an index of a server become parts of paths."""

    def check(value: object) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise UnexpectedValue(value, expected)
        return value

    return check


def _pair(value: object) -> tuple[str, str]:
    first, second = sequence(text(), 2, 2)(value)
    return first, second


def _fault(value: object) -> tuple[int, str, str]:
    row, *fault = sequence(lambda each: each, 3, 3)(value)
    return NATURAL(row), *_pair(fault)


SHA256 = _matching("[0-9a-f]{64}", "a SHA-256 in hex")
SPLIT = {"test_fraction": optional(number(0, 1)), "split_seed": NATURAL, "test_on_rest": flag}
CHECKS = {
    "classes": sequence(text(), MANY),
    "splits": mapping,
    "tables": mapping,
    "shardlist": sequence(mapping, MANY),
    "notes": sequence(text(1 << 16), MANY),
    "unused": sequence(_pair, MANY),
    "unreadable": sequence(_fault, MANY),
    **SPLIT,
}
TABLE = {"filesize": NATURAL, "sha256": SHA256}
SHARD = {
    "url": _matching(r"[\w-][\w.-]{0,199}", "the name of a file"),
    "nsamples": NATURAL,
    "filesize": NATURAL,
    "sha256": SHA256,
}
