"""Training, validation and test images, and the seeded draws that split them."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graft.config.task import SINGLE_LABEL, Task
from graft.data.images import ImageSet
from graft.data.labels import Labels as ImageLabels
from graft.data.labels import multi_hot, numbered, task_of
from graft.errors import DataError

if TYPE_CHECKING:
    from graft.data.corrections import AppliedCorrections

Labels = Sequence[int] | npt.NDArray[np.integer[Any]]


def stratified_split(
    labels: Labels, test_counts: Mapping[int, int], seed: int, *, classes: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Draw exactly `test_counts[c]` indices of each class `c` for testing.

    Args:
        labels: class index of each sample, length N.
        test_counts: number of test samples per class.
        seed: the only source of randomness; the result does not depend on the machine or the file order.
        classes: class names, for the error message.

    Returns:
        (train, test): sorted, disjoint indices into `labels` that together cover it.

    Raises:
        DataError: a class does not have more samples than requested; names the class and both numbers.
    """
    labels = np.asarray(labels, dtype=np.int64)
    drawn = np.zeros(len(labels), dtype=bool)
    for label, requested in sorted(test_counts.items()):
        members = np.flatnonzero(labels == label)
        if requested and len(members) <= requested:
            raise DataError(
                f"{_class_name(label, classes)} has {_images(len(members))}, "
                f"but {requested} are requested for testing and at least one must remain."
            )
        order = order_of(len(members), seed, label)
        drawn[members[order[:requested]]] = True
    return np.flatnonzero(~drawn).tolist(), np.flatnonzero(drawn).tolist()


def stratified_fraction(
    labels: Labels, fraction: float, seed: int, *, key: str, way_out: str, classes: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Draw `fraction` of each class, rounded, but at least one sample and never all.

    Args:
        labels: class index of each sample, length N.
        fraction: fraction of each class to draw, in (0, 1).
        seed: the only source of randomness.
        key: the configuration key of the fraction, for the error message.
        way_out: how to fix the error, for its message.
        classes: class names, for the error message.

    Returns:
        (rest, drawn): sorted, disjoint indices into `labels` that together cover it.

    Raises:
        DataError: a class has a single sample.
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64))
    for label, count in enumerate(counts):
        if count == 1:
            raise DataError(
                f"{_class_name(label, classes)} has 1 image, but {key}={fraction:g} needs at least 2.\n{way_out}"
            )
    counts_to_draw = {label: min(max(round(n * fraction), 1), n - 1) for label, n in enumerate(counts.tolist()) if n}
    return stratified_split(labels, counts_to_draw, seed, classes=classes)


def grouped_fraction(
    labels: Labels, groups: Sequence[str], fraction: float, seed: int, *, key: str, classes: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Draw whole groups with about `fraction` of each class, and never all images of a class.

    Groups are visited in random order; one is drawn if that brings the drawn fractions of its classes closer to
    `fraction`. A class of which nothing was drawn then gets the group that changes the other classes least.

    Args:
        labels: class index of each sample, length N.
        groups: group of each sample, length N.
        fraction: fraction of each class to draw, in (0, 1).
        seed: the only source of randomness; the result does not depend on the order of the samples.
        key: the configuration key of the fraction, for the error message.
        classes: class names.

    Returns:
        (rest, drawn): sorted, disjoint indices into `labels` that together cover it.

    Raises:
        DataError: no group can be drawn, because each has all images of a class.
    """
    labels = np.asarray(labels, dtype=np.int64)
    names, group_of = numbered(groups)
    size = max(len(classes), int(labels.max(initial=-1)) + 1)
    totals = np.bincount(labels, minlength=size)
    pairs, numbers = np.unique(group_of * size + labels, return_counts=True)
    bounds = np.searchsorted(pairs, np.arange(len(names) + 1) * size)
    contents = [(pairs[begin:end] % size, numbers[begin:end]) for begin, end in itertools.pairwise(bounds)]
    drawn, chosen = np.zeros(size), np.zeros(len(names), dtype=bool)

    def cost(group: int) -> float:
        """Change of the squared error of the drawn fractions if a group is drawn; infinite if that is impossible."""
        members, counts = contents[group]
        if chosen[group] or (drawn[members] + counts >= totals[members]).any():
            return np.inf
        error = drawn[members] - fraction * totals[members]
        return float((counts * (counts + 2 * error) / totals[members] ** 2).sum())

    def draw(group: int) -> None:
        members, counts = contents[group]
        chosen[group] = True
        drawn[members] += counts

    order = order_of(len(names), seed, size)
    for group in order.tolist():
        if cost(group) < 0:
            draw(group)
    for label in np.argsort(totals, kind="stable").tolist():
        if totals[label] and not drawn[label]:
            candidates = [group for group in order.tolist() if label in contents[group][0]]
            best = min(candidates, key=cost)
            if cost(best) < np.inf:
                draw(best)
    if not chosen.any():
        raise DataError(
            f"{key}={fraction:g}: no group can be drawn without all images of a class ({len(names)} groups), and a "
            "group is not divided.\nAdd groups, or provide the split yourself."
        )
    taken = chosen[group_of]
    return np.flatnonzero(~taken).tolist(), np.flatnonzero(taken).tolist()


def stratified_fold(
    labels: Labels, fold: int, folds: int, seed: int, *, classes: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Draw fold `fold` of `folds` stratified folds; with the same seed, each sample is in exactly one of them.

    The samples of each class are dealt to the folds in turn, starting where the previous class ended, so that the folds
    differ by at most one sample in each class and in total.

    Args:
        labels: class index of each sample, length N.
        fold: index of the fold to draw, from 0 to folds - 1.
        folds: number of folds, at least 2.
        seed: the only source of randomness.
        classes: class names, for the error message.

    Returns:
        (rest, drawn): sorted, disjoint indices into `labels` that together cover it.

    Raises:
        DataError: a class has a single sample, which could then not both train and validate.
    """
    labels = np.asarray(labels, dtype=np.int64)
    drawn = np.zeros(len(labels), dtype=bool)
    dealt = 0
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            raise DataError(
                f"{_class_name(label, classes)} has 1 image, but data.folds={folds} needs at least 2.\nAdd images."
            )
        fold_of = (np.arange(len(members)) + dealt) % folds
        drawn[members[order_of(len(members), seed, label)[fold_of == fold]]] = True
        dealt += len(members)
    return np.flatnonzero(~drawn).tolist(), np.flatnonzero(drawn).tolist()


def few_shot(labels: Labels, shots: int, seed: int, *, classes: Sequence[str] = ()) -> tuple[list[int], list[int]]:
    """Draw exactly `shots` samples of each class.

    The draws are nested: with the same seed, the samples for fewer shots are a subset of those for more shots.

    Returns:
        (drawn, rest): sorted, disjoint indices into `labels` that together cover it.

    Raises:
        DataError: a class has fewer samples; names the class and both numbers.
    """
    labels = np.asarray(labels, dtype=np.int64)
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise DataError(
                f"{_class_name(label, classes)} has {_images(len(members))} to train on, "
                f"but data.shots={shots} needs {shots}.\nSet data.shots={len(members)} or fewer."
            )
        order = order_of(len(members), seed, label)
        drawn[members[order[:shots]]] = True
    return np.flatnonzero(drawn).tolist(), np.flatnonzero(~drawn).tolist()


def order_of(count: int, seed: int, label: int) -> npt.NDArray[np.int64]:
    """A permutation that does not depend on the machine, the NumPy version or other classes."""
    words = [seed % 2**32] if 0 <= seed < 2**32 else [seed % 2**32, (seed >> 32) % 2**32]
    # NumPy guarantees the stream of RandomState (NEP 19), but not those of its newer generators
    return np.random.RandomState([*words, label]).permutation(count)


def _class_name(label: int, classes: Sequence[str]) -> str:
    return f'class "{classes[label]}"' if label < len(classes) else f"class {label}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _moved(labels: ImageLabels, table: npt.NDArray[np.int64], num_classes: int) -> ImageLabels:
    """Labels of other classes: class c becomes class `table[c]` of `num_classes`."""
    if labels.ndim == 1:
        return table[labels]
    moved = np.zeros((len(labels), num_classes), dtype=labels.dtype)
    moved[:, table] = labels
    return moved


@dataclass(frozen=True)
class Splits:
    """A data set split into training, validation and test images.

    Attributes:
        classes: class names; labels are indices into them.
        train, val, test: the images; `val` and `test` may be the same object, which a note then states.
        notes: for the reader of the results, one sentence each.
        root: folder of the files; None for images in memory.
        unreadable: (name, reason) of images that were excluded because they cannot be read.
        unused: (name, reason) of files in `root` that are not in the data set, and of rows of its table that are not
            used.
        dropped: (name, reason) of images that were removed: training images that are copies of others, and images
            that data.corrections excludes.
        source: `Source.fingerprint` of the data set, with its corrections.
        corrections: what data.corrections has changed; None without it.
    """

    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()
    root: Path | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    source: str = ""
    corrections: "AppliedCorrections | None" = None

    @property
    def task(self) -> Task:
        """Whether an image has one label or several."""
        return task_of(self.train.labels)

    def parts(self) -> dict[str, ImageSet]:
        """Split name → images."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def distinct_parts(self) -> dict[str, ImageSet]:
        """Split name → images, each image once: "val and test" where both are the same images."""
        return {"train": self.train, "val and test": self.val} if self.val is self.test else self.parts()

    def counts(self) -> dict[str, dict[str, int]]:
        """Split name → class name → number of images."""
        return {
            name: dict(zip(self.classes, part.counts(len(self.classes)), strict=True))
            for name, part in self.parts().items()
        }

    def part(self, name: str) -> ImageSet:
        """The images of a split, or of all splits ("all"), each image once."""
        if name != "all":
            return self.parts()[name]
        joined = self.train.join(self.val)
        return joined if self.test is self.val else joined.join(self.test)

    def relabelled(self, classes: Sequence[str]) -> "Splits":
        """The same images with labels that are indices into `classes`, matched by name.

        Raises:
            DataError: a class of this data set is not among `classes`; names both lists.
        """
        index = {name: position for position, name in enumerate(classes)}
        unknown = [name for name in self.classes if name not in index]
        if unknown:
            raise DataError(
                f"class {', '.join(unknown)}: not among the classes of the network. Rename or remove it.\n"
                f"network  {', '.join(classes)}\ndata     {', '.join(self.classes)}"
            )
        table = np.array([index[name] for name in self.classes], dtype=np.int64)
        parts = {
            id(part): replace(part, labels=_moved(part.labels, table, len(index))) for part in self.parts().values()
        }
        train, val, test = (parts[id(part)] for part in self.parts().values())
        return replace(self, classes=tuple(classes), train=train, val=val, test=test)

    def of_task(self, task: Task) -> "Splits":
        """The same images for a network of this task; one label per image is a case of several.

        Raises:
            DataError: images have several labels, and the network names one class.
        """
        if self.task is task:
            return self
        if task is SINGLE_LABEL:
            raise DataError(
                "the images have several labels, and the network names one class of each.\n"
                "Train a network with these labels, or give a data set with one label per image."
            )
        count = len(self.classes)
        parts = {
            id(part): replace(part, labels=multi_hot([[label] for label in part.labels.tolist()], count))
            for part in self.parts().values()
        }
        train, val, test = (parts[id(part)] for part in self.parts().values())
        return replace(self, train=train, val=val, test=test)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over classes, splits, names, labels and contents: pixels, or sizes and hashes of files.

        It does not depend on modification times, so a copy of the data set has the same.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for name, part in self.parts().items():
            digest.update(f"\n{name} {len(part)}\n".encode())
            for image, label in zip(part.names, part.labels.tolist(), strict=True):
                digest.update(f"{image}\0{label}\n".encode())
            part.hash_contents(digest, times=False)
        return digest.hexdigest()
