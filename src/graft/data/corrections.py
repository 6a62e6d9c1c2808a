"""Corrections of a data set (data.corrections): a CSV file that gives images another class, or excludes them.

Its columns are `path` (name of the image: its path relative to data.root), `given` (its class in the data set),
`action` ("relabel", "exclude" or "keep") and `label` (the class to give it); others are ignored but for `kind`, which
says of which proposal a row is the decision. An empty `action` means "relabel"; an empty `given` is not compared.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from graft.config.task import MULTI_LABEL
from graft.data.images import ImageSet
from graft.data.sources.base import Source
from graft.data.splits import Splits
from graft.errors import ConfigError, listed, nearest
from graft.system.escaping import from_csv_cell
from graft.system.files import NotARegularFile, read_regular

KEY = "data.corrections"

RELABEL, EXCLUDE, KEEP = ACTIONS = ("relabel", "exclude", "keep")
"""Values of `action`; "keep" records that a person has confirmed the image as it is."""

COLUMNS = ("path", "given", "action", "label")

LARGEST = 2**28
"""Largest size of the file, in bytes."""

LISTED = 3
"""Number of images that a message names."""


@dataclass(frozen=True)
class Correction:
    """A row of the file.

    Attributes:
        line: in the file, for messages.
        path: name of the image.
        given: its class in the data set; "" if it is not to be compared.
        action: one of `ACTIONS`.
        label: the class to give it; "" unless `action` is "relabel".
        kind: of the proposal that it decides, such as "label" or "outlier"; "" if unknown.
    """

    line: int
    path: str
    given: str
    action: str
    label: str
    kind: str = ""

    @property
    def effect(self) -> tuple[str, str]:
        """What becomes of the image: the action and the class."""
        return self.action, self.label

    def __str__(self) -> str:
        return f"{self.action} {self.label}".strip()


@dataclass(frozen=True)
class Corrections:
    """The rows of a file of corrections.

    Attributes:
        file: value of data.corrections.
        rows: of the file.
    """

    file: str
    rows: tuple[Correction, ...]

    @cached_property
    def changes(self) -> dict[str, Correction]:
        """Path -> the row that relabels or excludes the image."""
        return {row.path: row for row in self.rows if row.action != KEEP}

    @cached_property
    def kept(self) -> frozenset[tuple[str, str]]:
        """(path, kind) of the proposals that a person has rejected."""
        return frozenset((row.path, row.kind) for row in self.rows if row.action == KEEP)

    @cached_property
    def repeated(self) -> int:
        """Number of rows that change an image as an earlier row does."""
        return sum(row.action != KEEP for row in self.rows) - len(self.changes)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the changes, regardless of the order of the rows and of what has no effect on training."""
        changes = sorted((path, *row.effect) for path, row in self.changes.items())
        return hashlib.sha256(json.dumps(changes).encode()).hexdigest()


@dataclass(frozen=True)
class AppliedCorrections:
    """What a file of corrections has changed in a data set.

    Attributes:
        file: value of data.corrections.
        digest: of the changes, see `Corrections.digest`.
        relabelled, excluded: split -> number of images; "val and test" where both are the same images.
        kept: number of rows that confirm an image.
        unused: number of corrected images that are in no split (data.shots).
        original: name of each relabelled image -> its class in the data set.
    """

    file: str
    digest: str
    relabelled: Mapping[str, int]
    excluded: Mapping[str, int]
    kept: int
    unused: int
    original: Mapping[str, str]

    def plain(self) -> dict[str, Any]:
        """The entry of summary.json."""
        return {
            "file": self.file,
            "sha256": self.digest,
            "relabelled": dict(self.relabelled),
            "excluded": dict(self.excluded),
            "kept": self.kept,
            "unused": self.unused,
        }


def read_corrections(file: str) -> Corrections:
    """Read a file of corrections.

    Raises:
        ConfigError: it cannot be read, a column is missing, or a row is incomplete or contradicts another; names the
            line and the way out.
    """
    try:
        text = read_regular(Path(file).expanduser(), LARGEST).decode("utf-8-sig", "surrogateescape")
    except (OSError, NotARegularFile) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "there is no such file" if missing else f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(
            f"{KEY}={file}: {reason}.\nGive the file that the page of graft improve saves, or {KEY}=null."
        ) from None
    found = Corrections(file, tuple(_rows(file, text)))
    first: dict[str, Correction] = {}
    for row in found.rows:
        if row.action == KEEP:
            continue
        other = first.setdefault(row.path, row)
        if other.effect != row.effect:
            raise ConfigError(
                f"{KEY}={file}: lines {other.line} and {row.line} contradict each other: {row.path} is to be "
                f'"{other}" and "{row}".\nRemove one of them.'
            )
    return found


def _rows(file: str, text: str) -> Iterator[Correction]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [cell.strip() for cell in next(reader, [])]
        column = {name: header.index(name) for name in (*COLUMNS, "kind") if name in header}
        missing = [name for name in ("path", "label") if name not in column]
        if missing:
            raise ConfigError(
                f"{KEY}={file}: has no column {missing[0]}.\nIts first line must name the columns, e.g. "
                f"{','.join(COLUMNS)}; there are: {listed(header, 10) or 'none'}."
            )
        for cells in reader:
            if any(cell.strip() for cell in cells):
                values = {name: cells[at] if at < len(cells) else "" for name, at in column.items()}
                yield _row(file, reader.line_num, values)
    except csv.Error as error:
        raise ConfigError(f"{KEY}={file}: line {reader.line_num} is no line of a CSV file ({error}).") from error


def _row(file: str, line: int, values: Mapping[str, str]) -> Correction:
    where = f"{KEY}={file}: line {line}"
    given, label = values.get("given", ""), values["label"]
    action = values.get("action", "").strip().lower() or RELABEL
    if not values["path"]:
        raise ConfigError(f"{where}: names no image (path is empty).")
    if action not in ACTIONS:
        raise ConfigError(
            f"{where}: action={action}: unknown.{nearest(action, ACTIONS, most=1)} There are: {' '.join(ACTIONS)}."
        )
    if action == RELABEL and not label:
        raise ConfigError(
            f"{where}: {values['path']}: label is empty.\nGive the right class, or action={EXCLUDE} to leave the image "
            f"out, or action={KEEP} to keep it as it is."
        )
    if action == RELABEL and label == given:
        action = KEEP
    return Correction(line, values["path"], given, action, label if action == RELABEL else "", values.get("kind", ""))


def corrected(splits: Splits, published: Source, corrections: Corrections) -> Splits:
    """Splits with the corrected labels and without the excluded images.

    The split of an image does not depend on its correction, so that runs with and without corrections train and test on
    the same images but for the excluded ones.

    Args:
        splits: of `published`.
        published: the data set; each image that is corrected must be in it.
        corrections: from `read_corrections`.

    Raises:
        ConfigError: a row names an image or a class that does not exist, `given` is not the image's class, or nothing
            is left to train or evaluate on; names the line.
    """
    if splits.task is MULTI_LABEL:
        raise ConfigError(
            f"{KEY}={corrections.file}: the images have several labels, and corrections give each one class.\n"
            "Correct the table of labels instead, and leave data.corrections out."
        )
    rows = _named(published, corrections)
    counts: dict[str, dict[str, int]] = {RELABEL: {}, EXCLUDE: {}}
    excluded: list[tuple[str, str]] = []
    parts: dict[int, ImageSet] = {}
    original: dict[str, str] = {}
    used = 0
    for name, images in splits.distinct_parts().items():
        changes = {index: rows[each] for index, each in enumerate(images.names) if each in rows}
        used += len(changes)
        labels = images.labels.copy()
        for index, row in changes.items():
            if row.action == RELABEL:
                original[images.names[index]] = splits.classes[int(labels[index])]
                labels[index] = _class_index(row.label, splits.classes, corrections.file, row.line)
        out = [index for index, row in changes.items() if row.action == EXCLUDE]
        excluded += [(images.names[index], f"excluded by {KEY}") for index in out]
        kept = np.delete(np.arange(len(images)), out)
        parts[id(images)] = replace(images, labels=labels).select(kept) if changes else images
        counts[RELABEL][name], counts[EXCLUDE][name] = len(changes) - len(out), len(out)
        _require_images(parts[id(images)], images, name, splits.classes, corrections.file)
    applied = AppliedCorrections(
        corrections.file,
        corrections.digest,
        counts[RELABEL],
        counts[EXCLUDE],
        sum(row.action == KEEP for row in corrections.rows),
        len(rows) - used,
        original,
    )
    train, val, test = (parts[id(part)] for part in splits.parts().values())
    return replace(
        splits,
        train=train,
        val=val,
        test=test,
        dropped=(*splits.dropped, *excluded),
        corrections=applied,
        notes=(*splits.notes, *_notes(corrections, applied)),
        source=hashlib.sha256(f"{splits.source}{corrections.digest}".encode()).hexdigest(),
    )


def _named(published: Source, corrections: Corrections) -> dict[str, Correction]:
    """Name of an image -> the row that changes it; each row, also one that changes nothing, is compared with the data.

    Raises:
        ConfigError: an image is not there, or has another class than the row says.
    """
    by_path: dict[str, list[Correction]] = {}
    for row in corrections.rows:
        by_path.setdefault(row.path, []).append(row)
    escaped = {from_csv_cell(path): path for path in by_path}
    found: dict[str, str] = {}
    for images in published.parts():
        for index, name in enumerate(images.names):
            path = name if name in by_path else escaped.get(name)
            if path is None:
                continue
            found[path] = name
            label = published.classes[int(images.labels[index])]
            for row in by_path[path]:
                if row.given and label not in (row.given, from_csv_cell(row.given)):
                    raise ConfigError(
                        f"{KEY}={corrections.file}: line {row.line}: {name} is of class {label} in the data set, but "
                        f"given={row.given}: the data set has changed since.\nRemove the line, or change `given`."
                    )
    absent = [path for path in by_path if path not in found]
    if absent:
        line = by_path[absent[0]][0].line
        more = f" (and {len(absent) - 1:,} more)" if len(absent) > 1 else ""
        raise ConfigError(
            f"{KEY}={corrections.file}: line {line}: the data set has no image {absent[0]}{more}.\nPaths are relative "
            "to data.root, as in proposals.csv; remove the lines of images that are gone."
        )
    return {found[path]: row for path, row in corrections.changes.items()}


def _class_index(label: str, classes: Sequence[str], file: str, line: int) -> int:
    for name in (label, from_csv_cell(label)):
        if name in classes:
            return classes.index(name)
    raise ConfigError(
        f"{KEY}={file}: line {line}: label={label}: the data set has no such class.{nearest(label, classes)}\n"
        f"There are: {listed(classes, 20)}."
    )


def _require_images(after: ImageSet, before: ImageSet, part: str, classes: Sequence[str], file: str) -> None:
    """Raise ConfigError if no image is left, or none to train on of a class that had some."""
    if not len(after):
        raise ConfigError(f"{KEY}={file}: excludes all {part} images.")
    counts = zip(classes, before.counts(len(classes)), after.counts(len(classes)), strict=True)
    for name, had, has in counts:
        if part == "train" and had and not has:
            raise ConfigError(
                f'{KEY}={file}: no training image of class "{name}" is left.\nKeep some, or remove the class.'
            )


def _notes(corrections: Corrections, applied: AppliedCorrections) -> Iterator[str]:
    relabelled, excluded = (
        ", ".join(f"{count:,} {part}" for part, count in counts.items() if count) or "none"
        for counts in (applied.relabelled, applied.excluded)
    )
    yield f"{KEY}={corrections.file}: relabelled: {relabelled}; excluded: {excluded}"
    if any(count and "test" in part for part, count in (*applied.relabelled.items(), *applied.excluded.items())):
        yield (
            f"test images are corrected ({KEY}), so test metrics cannot be compared with those of runs without these "
            "corrections"
        )
    if corrections.repeated:
        yield f"{KEY}={corrections.file}: {corrections.repeated:,} rows repeat others"
    if applied.unused:
        yield f"{KEY}={corrections.file}: {applied.unused:,} of the images are in no split (data.shots)"
