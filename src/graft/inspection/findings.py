"""What is wrong with a data set, or worth knowing: each check a function from what was seen to findings."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.layout import NO_IMAGE, NOT_IN_SET, NOT_READ
from graft.inspection.dataset import Inspection

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""What spoils training or its figures; what may; what is good to know."""

IMBALANCE = 4.0
"""The largest class has so many times the training images of the smallest: of two classes, the smaller has 20 % (the
border of mild imbalance in Google's machine-learning course)."""

CUT = 2 / 3
"""The centre crop cuts off more than this share of a picture: its sides are as 2.3 to 1 or more."""

STRETCHED = 2.0
"""Squashing makes one side so many times shorter against the other."""

TESTING = {"test", "val and test"}
"""Parts whose figures are a run's result."""

_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}


@dataclass(frozen=True)
class Finding:
    """One thing to tell.

    Attributes:
        severity: "error" spoils training or its figures, "warning" may, "note" is good to know.
        kind: what it is, always in the same words, e.g. "unreadable".
        message: the same in a sentence, with numbers.
        files: (name, reason) of pictures or classes.
        groups: (name, part) of pictures, or of classes with no part, that belong together.
    """

    severity: Severity
    kind: str
    message: str
    files: list[tuple[str, str]] = field(default_factory=list)
    groups: list[list[tuple[str, str]]] = field(default_factory=list)


Findings = Iterator[Finding]


def findings(seen: Inspection) -> list[Finding]:
    """All there is to tell, the worst first."""
    found = [finding for check in CHECKS for finding in check(seen)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


# The division and the classes


def _undivided(seen: Inspection) -> Findings:
    if seen.collection.undivided is not None:
        yield Finding("error", "cannot be divided", seen.collection.undivided)


def _nothing_readable(seen: Inspection) -> Findings:
    for number, part in enumerate(seen.collection.parts):
        counts, readable = seen.counts[:, number], seen.readable_counts[:, number]
        to_learn = part in ("train", "all")
        empty = [
            (
                seen.collection.classes[label],
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


def _confusable_names(seen: Inspection) -> Findings:
    names = defaultdict(list)
    for name in seen.collection.classes:
        names[name.casefold().strip()].append((name, ""))
    groups = [group for group in names.values() if len(group) > 1]
    if groups:
        message = "classes that differ only in case or in spaces: on Windows and macOS they would be one folder"
        yield Finding("warning", "confusable classes", message, groups=groups)


def _imbalance(seen: Inspection) -> Findings:
    counts, classes = seen.readable_counts[:, 0], seen.collection.classes
    if len(counts) < 2 or not counts.min() or counts.max() < IMBALANCE * counts.min():
        return
    large, small = int(counts.argmax()), int(counts.argmin())
    yield Finding(
        "warning",
        "class imbalance",
        f"{counts[large] / counts[small]:.1f} times as many {seen.collection.parts[0]} images of {classes[large]} "
        f"({counts[large]:,}) as of {classes[small]} ({counts[small]:,}); always saying {classes[large]} would be "
        f"right for {counts[large] / counts.sum():.0%}. loss.class_weights=balanced weighs the classes alike",
    )


# Files


def _unreadable(seen: Inspection) -> Findings:
    kinds = Counter(fault.kind for fault in seen.faults.values())
    if kinds:
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        yield Finding(
            "warning",
            "unreadable",
            f"{_count(len(seen.faults), 'file')} that cannot be read: {said}",
            [(seen.name(index), f"{fault.kind}: {fault.reason}") for index, fault in seen.faults.items()],
        )


def _wrong_endings(seen: Inspection) -> Findings:
    formats = Image.registered_extensions()
    files = [
        (seen.name(index), f"its content is {look.format}")
        for index, look in seen.looks.items()
        if look.format
        and formats.get(Path(seen.name(index)).suffix.lower()) != _SAME_FORMAT.get(look.format, look.format)
    ]
    if files:
        message = f"{_count(len(files), 'file')} whose ending is not that of the content (read all the same)"
        yield Finding("warning", "mislabelled ending", message, files)


_UNUSED: dict[str, tuple[Severity, str]] = {
    NOT_READ: ("warning", "format not read"),
    NOT_IN_SET: ("warning", "unused images"),
    NO_IMAGE: ("note", "other files"),
}
"""Reason of `unused_files` -> severity and kind of its finding."""


def _unused(seen: Inspection) -> Findings:
    for reason, (severity, kind) in _UNUSED.items():
        names = [name for name, why in seen.unused if why == reason]
        if names:
            message = f"{_count(len(names), 'file')} not used ({reason}): {_endings(names)}"
            yield Finding(severity, kind, message, [(name, "") for name in names])


def _endings(names: list[str]) -> str:
    counts = Counter(Path(name).suffix.lower() or "without ending" for name in names)
    return ", ".join(f"{count} {ending}" for ending, count in counts.most_common(5))


# Pictures that come twice


_COPIES: tuple[tuple[Severity, str, str], ...] = (
    (
        "error",
        "same image in train and test",
        "both trained and tested on: what is learned by heart counts as understood",
    ),
    ("warning", "same image in train and val", "both trained and validated on"),
    ("warning", "same image in val and test", "both validated and tested on"),
    ("warning", "same image twice", "more than once in one part"),
)


def _same(seen: Inspection) -> Findings:
    found = defaultdict(list)
    for group in seen.same:
        found[_kind_of_copies(seen.parts_of(group))].append(_names(seen, group))
    for severity, kind, message in _COPIES:
        if groups := found[kind]:
            yield Finding(severity, kind, f"{_count(len(groups), 'picture')} {message}", groups=groups)


def _kind_of_copies(parts: set[str]) -> str:
    if len(parts) == 1:
        return "same image twice"
    if "train" not in parts:
        return "same image in val and test"
    return f"same image in train and {'test' if parts & TESTING else 'val'}"


def _same_in_two_classes(seen: Inspection) -> Findings:
    groups = [_names(seen, group) for group in seen.same if len(seen.classes_of(group)) > 1]
    if groups:
        message = f"{_count(len(groups), 'picture')} under more than one class"
        yield Finding("warning", "same image in two classes", message, groups=groups)


_NEAR: tuple[tuple[Severity, str, str], ...] = (
    ("warning", "near duplicates across parts", "in more than one part"),
    ("warning", "near duplicates in two classes", "in more than one class"),
    ("note", "near duplicates", "in one part"),
)


def _near(seen: Inspection) -> Findings:
    found = defaultdict(list)
    for group in seen.near:
        apart = len(seen.parts_of(group)) > 1
        found["near duplicates across parts" if apart else "near duplicates"].append(_names(seen, group))
        if len(seen.classes_of(group)) > 1:
            found["near duplicates in two classes"].append(_names(seen, group))
    for severity, kind, where in _NEAR:
        if groups := found[kind]:
            message = f"{_count(len(groups), 'group')} of nearly the same pictures {where}"
            yield Finding(severity, kind, message, groups=groups)


# What the pictures are, and what becomes of them


def _blank(seen: Inspection) -> Findings:
    files = [(seen.name(index), "") for index, look in seen.looks.items() if look.blank]
    if files:
        yield Finding("warning", "blank", f"{_count(len(files), 'picture')} of a single colour", files)


def _enlarged(seen: Inspection) -> Findings:
    files = _worst(seen, seen.scale, seen.scale > 1, "enlarged {:.1f} times")
    if files:
        share = len(files) / len(seen.looks)
        yield Finding(
            "warning" if share >= 0.5 else "note",
            "enlarged",
            f"{_count(len(files), 'picture')} ({share:.0%}) smaller than the {seen.target} pixels they are resized to",
            files,
        )


def _cut(seen: Inspection) -> Findings:
    files = _worst(seen, seen.cropped_share, seen.cropped_share > CUT, "{:.0%} cut off")
    if files:
        message = (
            f"{_count(len(files), 'picture')} with more than two thirds cut off by the centre crop; "
            "data.preprocess.fit=squash keeps everything"
        )
        yield Finding("warning", "cut off", message, files)


def _stretched(seen: Inspection) -> Findings:
    stretch = np.maximum(seen.aspect, 1 / seen.aspect)
    files = _worst(seen, stretch, stretch >= STRETCHED, "{:.1f} to 1")
    if files and seen.preprocessing.fit == "squash":
        message = (
            f"{_count(len(files), 'picture')} with the longer side squashed to half or less; "
            "data.preprocess.fit=crop keeps proportions"
        )
        yield Finding("warning", "squashed", message, files)


_KINDS = {
    "animated": "animated: the first frame is taken",
    "turned": "turned by the camera (EXIF): put upright",
    "CMYK": "in CMYK: converted to RGB without a colour profile",
    "LAB": "in Lab colours: converted to RGB",
    "I;16": "in grey of 16 bits: scaled to 8",
    "I": "in grey of 32 bits: scaled to 8",
    "F": "in grey of floats: scaled to 8 bits",
}


def _kinds(seen: Inspection) -> Findings:
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for index, look in seen.looks.items():
        mode = "I;16" if look.mode.startswith("I;16") else look.mode
        for kind, holds in (("animated", look.animated), ("turned", look.rotated), (mode, mode in _KINDS)):
            if holds:
                kinds[kind].append((seen.name(index), ""))
    for kind, files in kinds.items():
        yield Finding("note", kind, f"{_count(len(files), 'picture')} {_KINDS[kind]}", files)


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
    seen: Inspection, values: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_], words: str
) -> list[tuple[str, str]]:
    """(name, words with the value) of the readable pictures in `mask`, the largest values first."""
    indices = list(seen.looks)
    places = np.flatnonzero(mask)
    order = places[np.argsort(-values[places], kind="stable")]
    return [(seen.name(indices[place]), words.format(values[place])) for place in order.tolist()]


def _names(seen: Inspection, group: list[int]) -> list[tuple[str, str]]:
    return [(seen.name(index), seen.collection.parts[seen.collection.part[index]]) for index in group]


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
