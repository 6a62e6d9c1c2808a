"""The interface of a data source: its function, its result and its download. Imports no NumPy."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from graft.errors import ConfigError

if TYPE_CHECKING:
    from graft.data.image_format import ImageFormat
    from graft.data.images import ImageSet

SAMPLED = 10_000
"""Approximate number of images whose content enters the fingerprint of a larger data set."""


def require_test_fraction(value: float) -> None:
    """Refuse a fraction of test images that leaves none, or none to train on.

    Raises:
        ConfigError: it is not in (0, 1).
    """
    if not 0 < value < 1:
        raise ConfigError(f"data.test_fraction={value:g}: must be above 0 and below 1.")


@dataclass(frozen=True)
class Source:
    """A data set in its published splits.

    Attributes:
        classes: class names; labels are indices into them.
        train: the training images; if `test_fraction` is set, all images.
        val, test: the published validation and test images; None if there is no such split.
        notes: remarks for the reader of the results, one sentence each.
        test_fraction: fraction of each class, in (0, 1), to draw for testing from a set that is not published in
            splits. None: published splits.
        split_seed: seed of that draw, separate from the run's seed so that all runs have the same test images.
        test_on_rest: whether with data.shots=K the test images are all but the K training images of each class,
            instead of those of `test_fraction`.
        group_of: maps the name of an image to its group, e.g. the person in it; no group is in two splits.
        unused: (row or image, reason) of what a table lists and the data set does not use; reasons of
            `graft.data.layout.UNUSED`.
        searched: folders in the root whose other files are reported as not used; None: all of the root.
        files: of the data set apart from its images, e.g. a table.
    """

    classes: tuple[str, ...]
    train: "ImageSet"
    val: "ImageSet | None" = None
    test: "ImageSet | None" = None
    notes: tuple[str, ...] = ()
    test_fraction: float | None = None
    split_seed: int = 0
    test_on_rest: bool = True
    group_of: Callable[[str], str] | None = None
    unused: tuple[tuple[str, str], ...] = ()
    searched: tuple[str, ...] | None = None
    files: tuple[Path, ...] = ()

    def named_parts(self) -> "dict[str, ImageSet]":
        """Split name → images, of each published split."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def parts(self) -> "list[ImageSet]":
        """The images of each published split."""
        return list(self.named_parts().values())

    def in_format(self, image_format: "ImageFormat") -> "Source":
        """The same data set whose images are read in this format."""
        parts = {name: replace(part, image_format=image_format) for name, part in self.named_parts().items()}
        return replace(self, train=parts["train"], val=parts.get("val"), test=parts.get("test"))

    def fingerprint(self) -> str:
        """Hash of the data set, independent of seed, fold, number of shots, root folder and file order.

        It covers the name and label of each image, and the content (pixels, or file size) of a sample: all images up
        to `SAMPLED`. A million files take about four seconds.
        """
        parts = self.parts()
        step = max(1, sum(map(len, parts)) // SAMPLED)
        count = total = 0
        for part in parts:
            for index, (name, label) in enumerate(zip(part.names, part.labels.tolist(), strict=True)):
                image = hashlib.blake2b(f"{name}\0{label}".encode("utf-8", "surrogateescape"), digest_size=16)
                if int.from_bytes(image.digest()[:4]) % step == 0:
                    image.update(part.content(index))
                count, total = count + 1, total + int.from_bytes(image.digest())  # a sum does not depend on the order
        return hashlib.sha256(json.dumps([self.classes, count, total]).encode()).hexdigest()


class SourceFunction(Protocol):
    """Reads a data set in its published splits.

    Graft supplies `root` (data.root, a Path), `seed` (of the run) and `more_endings` (of files that are images too in
    the format of the run, e.g. (".npy",)) if the function has parameters of these names. Its other parameters are keys
    of the `data` group; those with a default are optional, and annotations of int, float,
    str, bool or None are checked before the call::

        def load(root: Path, *, seed: int, test_fraction: float = 0.2) -> Source: ...

    The test images should not depend on `seed`, so that all runs are tested on the same images.

    Raises:
        DataError: the folder `root` does not contain this data set; names the expected layout.
    """

    def __call__(self, *args: Any, **arguments: Any) -> Source: ...


@dataclass(frozen=True)
class Download:
    """The archive in which a data set is published.

    Attributes:
        url: of the archive.
        folder: the top-level folder in it, e.g. "flower_photos".
        sha256, md5: checksums as published, in hex; None if there is none.
        size: of the archive in bytes, as published.
    """

    url: str
    folder: str
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None
