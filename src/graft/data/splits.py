"""Which picture trains, which validates, which tests: seeded draws and the result of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.images import ImageSet
from graft.errors import DataError

Labels = Sequence[int] | npt.NDArray[np.int64]


def stratified_split(
    labels: Labels, test_counts: Mapping[int, int], seed: int, *, classes: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Draw exactly `test_counts[c]` indices of each class `c` for the test side.

    Args:
        labels: class index of each sample, length N.
        test_counts: number of test samples wanted per class.
        seed: the only source of chance; the same on every machine and file system.
        classes: class names, for the error message.

    Returns:
        (train, test): sorted, disjoint indices into `labels` that together cover it.

    Raises:
        DataError: a class has no more samples than are wanted; names the class and both numbers.
    """
    labels = np.asarray(labels, dtype=np.int64)
    drawn = np.zeros(len(labels), dtype=bool)
    for label, wanted in sorted(test_counts.items()):
        members = np.flatnonzero(labels == label)
        if wanted and len(members) <= wanted:
            raise DataError(
                f"{_class_name(label, classes)} has {_images(len(members))}, "
                f"but {wanted} are wanted for the test side and at least one must remain."
            )
        order = _order(len(members), seed, label)
        drawn[members[order[:wanted]]] = True
    return np.flatnonzero(~drawn).tolist(), np.flatnonzero(drawn).tolist()


def stratified_fraction(
    labels: Labels, fraction: float, seed: int, *, key: str, way_out: str, classes: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Draw `fraction` of each class, rounded, at least one sample of each and never all.

    Args:
        labels: class index of each sample, length N.
        fraction: share of each class to draw, above 0 and below 1.
        seed: the only source of chance.
        key: the configuration key that asked for the fraction, for the error message.
        way_out: what the user can do about the error, for the error message.
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
    wanted = {label: min(max(round(n * fraction), 1), n - 1) for label, n in enumerate(counts.tolist()) if n}
    return stratified_split(labels, wanted, seed, classes=classes)


def stratified_fold(
    labels: Labels, fold: int, folds: int, seed: int, *, classes: Sequence[str] = ()
) -> tuple[list[int], list[int]]:
    """Fold `fold` of `folds` nearly equal parts of each class: with one seed, every sample is drawn in exactly one.

    Each class is dealt out in turn, going on where the class before it stopped, so that the folds differ by at most
    one sample in every class and by at most one in all.

    Args:
        labels: class index of each sample, length N.
        fold: which part to draw, from 0 to folds - 1.
        folds: number of parts, at least 2.
        seed: the only source of chance.
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
        places = (np.arange(len(members)) + dealt) % folds
        drawn[members[_order(len(members), seed, label)[places == fold]]] = True
        dealt += len(members)
    return np.flatnonzero(~drawn).tolist(), np.flatnonzero(drawn).tolist()


def few_shot(labels: Labels, shots: int, seed: int, *, classes: Sequence[str] = ()) -> tuple[list[int], list[int]]:
    """Draw exactly `shots` samples of each class.

    The draws are nested: with one seed, the samples of fewer shots are among those of more.

    Returns:
        (drawn, rest): sorted, disjoint indices into `labels` that together cover it.

    Raises:
        DataError: a class has fewer samples than that; names the class and both numbers.
    """
    labels = np.asarray(labels, dtype=np.int64)
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise DataError(
                f"{_class_name(label, classes)} has {_images(len(members))} to train on, "
                f"but data.shots={shots} wants {shots}.\nSet data.shots={len(members)} or fewer."
            )
        order = _order(len(members), seed, label)
        drawn[members[order[:shots]]] = True
    return np.flatnonzero(drawn).tolist(), np.flatnonzero(~drawn).tolist()


def _order(count: int, seed: int, label: int) -> npt.NDArray[np.int64]:
    """A permutation that no machine, NumPy version or other class changes."""
    words = [seed % 2**32] if 0 <= seed < 2**32 else [seed % 2**32, (seed >> 32) % 2**32]
    # RandomState's streams are frozen by NumPy's policy (NEP 19), its newer generators' are not
    return np.random.RandomState([*words, label]).permutation(count)


def _class_name(label: int, classes: Sequence[str]) -> str:
    return f'class "{classes[label]}"' if label < len(classes) else f"class {label}"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


@dataclass(frozen=True)
class Splits:
    """A data set, divided.

    Attributes:
        classes: class names; a label is an index into them.
        train, val, test: the parts; `val` and `test` may be the same object, then a note says so.
        notes: what a reader of the results ought to know, one sentence each.
        root: where the files lie; None when there are none.
        left_out: (name, reason) of images that were drawn but cannot be read.
        source: `Source.fingerprint` of the set that was divided.
    """

    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    notes: tuple[str, ...] = ()
    root: Path | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    source: str = ""

    def parts(self) -> dict[str, ImageSet]:
        """The three parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class name."""
        return {
            name: dict(zip(self.classes, part.counts(len(self.classes)), strict=True))
            for name, part in self.parts().items()
        }

    def part(self, name: str) -> ImageSet:
        """A part by its name, or with "all" every image once."""
        if name != "all":
            return self.parts()[name]
        joined = self.train.join(self.val)
        return joined if self.test is self.val else joined.join(self.test)

    def relabelled(self, classes: Sequence[str]) -> "Splits":
        """The same images with labels that are indices into `classes`, matched by name.

        Raises:
            DataError: a class of this set that is not among `classes`; names both lists.
        """
        index = {name: place for place, name in enumerate(classes)}
        strangers = [name for name in self.classes if name not in index]
        if strangers:
            raise DataError(
                f"class {', '.join(strangers)}: not among the classes of the network. Rename or leave out.\n"
                f"network  {', '.join(classes)}\ndata     {', '.join(self.classes)}"
            )
        table = np.array([index[name] for name in self.classes], dtype=np.int64)
        parts = {id(part): replace(part, labels=table[part.labels]) for part in self.parts().values()}
        train, val, test = (parts[id(part)] for part in self.parts().values())
        return replace(self, classes=tuple(classes), train=train, val=val, test=test)

    def fingerprint(self) -> str:
        """SHA-256 (hex) over classes, splits, names, labels and contents: pixels, or sizes and hashes of files.

        It is the same for a copy of the data set, whenever that was made.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for name, part in self.parts().items():
            digest.update(f"\n{name} {len(part)}\n".encode())
            for picture, label in zip(part.names, part.labels.tolist(), strict=True):
                digest.update(f"{picture}\0{label}\n".encode())
            part.hash_contents(digest, times=False)
        return digest.hexdigest()
