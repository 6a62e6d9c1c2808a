"""Findings about a data set: each check is a function from an inspection to findings."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.layout import (
    CONTRADICTION,
    NO_FILE,
    NO_IMAGE,
    NO_LABEL,
    NO_NAME,
    NO_SPLIT,
    NOT_IN_SET,
    NOT_READ,
    REPEATED,
    UNUSED,
)
from graft.inspection.dataset import Inspection

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Errors make training or its results useless, warnings may, notes are for information."""

IMBALANCE = 4.0
"""Ratio of the largest to the smallest class from which on imbalance is reported: of two classes, the smaller has 20 %
(the limit of mild imbalance in Google's machine-learning course)."""

CUT = 2 / 3
"""Fraction of an image's area that the centre crop cuts off, above which it is reported (an aspect ratio of 2.3)."""

STRETCHED = 2.0
"""Change of the aspect ratio by squashing from which on it is reported."""

TESTING = {"test", "val and test"}
"""Splits whose metrics are the result of a run."""

_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}


@dataclass(frozen=True)
class Finding:
    """One problem of a data set, or information about it.

    Attributes:
        severity: see `SEVERITIES`.
        kind: a fixed name, e.g. "unreadable".
        message: a sentence with numbers.
        files: (name, reason) of images or classes.
        groups: groups of (name, split) of images, or (name, "") of classes, that belong together.
    """

    severity: Severity
    kind: str
    message: str
    files: list[tuple[str, str]] = field(default_factory=list)
    groups: list[list[tuple[str, str]]] = field(default_factory=list)


Findings = Iterator[Finding]


def findings(inspection: Inspection) -> list[Finding]:
    """All findings, the most severe first."""
    found = [finding for check in CHECKS for finding in check(inspection)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


# The division and the classes


def _undivided(inspection: Inspection) -> Findings:
    if inspection.collection.undivided is not None:
        yield Finding("error", "cannot be divided", inspection.collection.undivided)


def _nothing_readable(inspection: Inspection) -> Findings:
    for number, part in enumerate(inspection.collection.parts):
        counts, readable = inspection.counts[:, number], inspection.readable_counts[:, number]
        to_learn = part in ("train", "all")
        empty = [
            (
                inspection.collection.classes[label],
                f"has {counts[label]:,}, none readable" if counts[label] else "has no images",
            )
            for label in np.flatnonzero(readable == 0).tolist()
        ]
        if empty:
            yield Finding(
                "error" if to_learn or not readable.any() else "warning",
                "nothing readable",
                f"{_count(len(empty), 'class', 'classes')} without a readable image in {part}",
                empty,
            )


def _confusable_names(inspection: Inspection) -> Findings:
    names = defaultdict(list)
    for name in inspection.collection.classes:
        names[name.casefold().strip()].append((name, ""))
    groups = [group for group in names.values() if len(group) > 1]
    if groups:
        message = "classes that differ only in case or in spaces: on Windows and macOS they would be one folder"
        yield Finding("warning", "confusable classes", message, groups=groups)


def _imbalance(inspection: Inspection) -> Findings:
    counts, classes = inspection.readable_counts[:, 0], inspection.collection.classes
    if len(counts) < 2 or not counts.min() or counts.max() < IMBALANCE * counts.min():
        return
    large, small = int(counts.argmax()), int(counts.argmin())
    yield Finding(
        "warning",
        "class imbalance",
        f"{counts[large] / counts[small]:.1f} times as many {inspection.collection.parts[0]} images of "
        f"{classes[large]} ({counts[large]:,}) as of {classes[small]} ({counts[small]:,}); always predicting "
        f"{classes[large]} gives {counts[large] / counts.sum():.0%} accuracy. "
        "loss.class_weights=balanced gives classes equal weight",
    )


# Files


def _unreadable(inspection: Inspection) -> Findings:
    kinds = Counter(fault.kind for fault in inspection.unreadable.values())
    if kinds:
        reasons = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        yield Finding(
            "warning",
            "unreadable",
            f"{_count(len(inspection.unreadable), 'file')} that cannot be read: {reasons}",
            [
                (inspection.name(index), f"{fault.kind}: {fault.reason}")
                for index, fault in inspection.unreadable.items()
            ],
        )


def _wrong_endings(inspection: Inspection) -> Findings:
    formats = Image.registered_extensions()
    files = [
        (inspection.name(index), f"its content is {facts.format}")
        for index, facts in inspection.readable.items()
        if facts.format
        and formats.get(Path(inspection.name(index)).suffix.lower()) != _SAME_FORMAT.get(facts.format, facts.format)
    ]
    if files:
        message = f"{_count(len(files), 'file')} whose ending does not match the content (read by content)"
        yield Finding("warning", "mislabelled ending", message, files)


_UNUSED: dict[str, tuple[Severity, str]] = {
    CONTRADICTION: ("warning", "contradicting rows"),
    NO_FILE: ("warning", "rows without a file"),
    NO_LABEL: ("warning", "rows without a label"),
    NO_NAME: ("warning", "rows without an image"),
    NO_SPLIT: ("note", "rows without a split"),
    REPEATED: ("note", "repeated rows"),
    NOT_READ: ("warning", "format not read"),
    NOT_IN_SET: ("warning", "unused images"),
    NO_IMAGE: ("note", "other files"),
}
"""Reason in `graft.data.layout.UNUSED` -> severity and kind of its finding."""


def _unused(inspection: Inspection) -> Findings:
    for reason, (severity, kind) in _UNUSED.items():
        names = [name for name, why in inspection.collection.unused if why == reason]
        if names:
            endings = f": {_endings(names)}" if UNUSED[reason][0] == "file" else ""
            message = f"{_count(len(names), *UNUSED[reason])} not used ({reason}){endings}"
            yield Finding(severity, kind, message, [(name, "") for name in names])


def _endings(names: list[str]) -> str:
    counts = Counter(Path(name).suffix.lower() or "without ending" for name in names)
    return ", ".join(f"{count} {ending}" for ending, count in counts.most_common(5))


# Images that come twice


_COPIES: tuple[tuple[Severity, str, str], ...] = (
    (
        "error",
        "same image in train and test",
        "both trained and tested on, so that test metrics are too good",
    ),
    ("warning", "same image in train and val", "both trained and validated on"),
    ("warning", "same image in val and test", "both validated and tested on"),
    ("warning", "same image twice", "more than once in one part"),
)


def _same(inspection: Inspection) -> Findings:
    found = defaultdict(list)
    for group in inspection.same:
        found[_kind_of_copies(inspection.parts_of(group))].append(_names(inspection, group))
    for severity, kind, message in _COPIES:
        if groups := found[kind]:
            yield Finding(severity, kind, f"{_count(len(groups), 'image')} {message}", groups=groups)


def _kind_of_copies(parts: set[str]) -> str:
    if len(parts) == 1:
        return "same image twice"
    if "train" not in parts:
        return "same image in val and test"
    return f"same image in train and {'test' if parts & TESTING else 'val'}"


def _same_in_two_classes(inspection: Inspection) -> Findings:
    groups = [_names(inspection, group) for group in inspection.same if len(inspection.classes_of(group)) > 1]
    if groups:
        message = f"{_count(len(groups), 'image')} in more than one class"
        yield Finding("warning", "same image in two classes", message, groups=groups)


_NEAR: tuple[tuple[Severity, str, str], ...] = (
    ("warning", "near duplicates across parts", "in more than one part"),
    ("warning", "near duplicates in two classes", "in more than one class"),
    ("note", "near duplicates", "in one part"),
)


def _near(inspection: Inspection) -> Findings:
    found = defaultdict(list)
    for group in inspection.near:
        across = len(inspection.parts_of(group)) > 1
        found["near duplicates across parts" if across else "near duplicates"].append(_names(inspection, group))
        if len(inspection.classes_of(group)) > 1:
            found["near duplicates in two classes"].append(_names(inspection, group))
    for severity, kind, where in _NEAR:
        if groups := found[kind]:
            message = f"{_count(len(groups), 'group')} of nearly the same images {where}"
            yield Finding(severity, kind, message, groups=groups)


# What the images are, and what becomes of them


def _blank(inspection: Inspection) -> Findings:
    files = [(inspection.name(index), "") for index, facts in inspection.readable.items() if facts.blank]
    if files:
        yield Finding("warning", "blank", f"{_count(len(files), 'image')} of a single colour", files)


def _enlarged(inspection: Inspection) -> Findings:
    files = _worst(inspection, inspection.scale, inspection.scale > 1, "enlarged {:.1f} times")
    if files:
        share = len(files) / len(inspection.readable)
        yield Finding(
            "warning" if share >= 0.5 else "note",
            "enlarged",
            f"{_count(len(files), 'image')} ({share:.0%}) smaller than what they are resized to",
            files,
        )


def _cut(inspection: Inspection) -> Findings:
    files = _worst(inspection, inspection.cropped_share, inspection.cropped_share > CUT, "{:.0%} cut off")
    if files:
        message = (
            f"{_count(len(files), 'image')} with more than two thirds cut off by the centre crop; "
            "data.preprocess.fit=squash keeps everything"
        )
        yield Finding("warning", "cut off", message, files)


def _stretched(inspection: Inspection) -> Findings:
    stretch = np.maximum(inspection.aspect, 1 / inspection.aspect)
    files = _worst(inspection, stretch, stretch >= STRETCHED, "{:.1f} to 1")
    if files and inspection.preprocessing.fit == "squash":
        message = (
            f"{_count(len(files), 'image')} with the longer side squashed to half or less; "
            "data.preprocess.fit=crop keeps proportions"
        )
        yield Finding("warning", "squashed", message, files)


_KINDS = {
    "animated": "animated: only the first frame is used",
    "turned": "rotated by EXIF: turned upright",
    "CMYK": "in CMYK: converted to RGB without a colour profile",
    "LAB": "in Lab colours: converted to RGB",
    "I;16": "in grey of 16 bits: scaled to 8",
    "I": "in grey of 32 bits: scaled to 8",
    "F": "in grey of floats: scaled to 8 bits",
}


def _kinds(inspection: Inspection) -> Findings:
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for index, facts in inspection.readable.items():
        mode = "I;16" if facts.mode.startswith("I;16") else facts.mode
        for kind, holds in (("animated", facts.animated), ("turned", facts.rotated), (mode, mode in _KINDS)):
            if holds:
                kinds[kind].append((inspection.name(index), ""))
    for kind, files in kinds.items():
        yield Finding("note", kind, f"{_count(len(files), 'image')} {_KINDS[kind]}", files)


CHECKS: tuple[Callable[[Inspection], Findings], ...] = (
    _undivided,
    _nothing_readable,
    _same,
    _unreadable,
    _same_in_two_classes,
    _near,
    _wrong_endings,
    _unused,
    _blank,
    _imbalance,
    _confusable_names,
    _cut,
    _stretched,
    _enlarged,
    _kinds,
)


def _worst(
    inspection: Inspection, values: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_], template: str
) -> list[tuple[str, str]]:
    """(name, formatted value) of the readable images in `mask`, the largest values first."""
    indices = list(inspection.readable)
    positions = np.flatnonzero(mask)
    order = positions[np.argsort(-values[positions], kind="stable")]
    return [(inspection.name(indices[position]), template.format(values[position])) for position in order.tolist()]


def _names(inspection: Inspection, group: list[int]) -> list[tuple[str, str]]:
    return [(inspection.name(index), inspection.collection.parts[inspection.collection.part[index]]) for index in group]


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
