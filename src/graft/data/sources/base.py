"""What a source function takes and returns."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from graft.data.images import ImageSet
from graft.errors import ConfigError

SAMPLED = 10_000
"""About how many images of a larger set the fingerprint of a source looks at."""


@dataclass(frozen=True)
class Source:
    """A data set as its publisher divides it.

    Attributes:
        classes: class names in the order of the labels.
        train: the training images; with `test_fraction` the one pool of all images.
        val, test: as published; None where there is no such part.
        notes: remarks for the reader of the results, one sentence each.
        test_fraction: the set is one pool: this share of each class is drawn as test, or with data.shots=K
            all but the K of each class that train. None: the publisher separates train and test.
        split_seed: seed of that draw, fixed so that the test images do not depend on the run's seed.
        group_of: from an image's name to its group, e.g. the person it shows; folds do not split a group.
    """

    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet | None = None
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()
    test_fraction: float | None = None
    split_seed: int = 0
    group_of: Callable[[str], str] | None = None

    def fingerprint(self) -> str:
        """Hash of the set before it is divided: the same for every seed, fold, number of shots, root and file order.

        Of all images it covers name and label, of a sample (all of them up to `SAMPLED`) the content too: pixels, or
        the size of the file. A million files take about four seconds.
        """
        parts = [part for part in (self.train, self.val, self.test) if part is not None]
        every = max(1, sum(map(len, parts)) // SAMPLED)
        count = total = 0
        for part in parts:
            for index, (name, label) in enumerate(zip(part.names, part.labels.tolist(), strict=True)):
                image = hashlib.blake2b(f"{name}\0{label}".encode("utf-8", "surrogateescape"), digest_size=16)
                if int.from_bytes(image.digest()[:4]) % every == 0:
                    image.update(part.content(index))
                count, total = count + 1, total + int.from_bytes(image.digest())  # in any order
        return hashlib.sha256(json.dumps([self.classes, count, total]).encode()).hexdigest()


class SourceFunction(Protocol):
    """Reads a data set, as its publisher divides it.

    Graft supplies `root` (data.root, a Path) and `seed` (the run's) if the function has parameters of these names. Its
    other parameters are set in the `data` group; a default makes one optional, and an annotation of int, float, str,
    bool or None is checked before the function is called::

        def load(root: Path, *, seed: int, test_fraction: float = 0.2) -> Source: ...

    The test images should not depend on `seed`, so that runs with other seeds are tested on the same images.

    Raises:
        DataError: what lies at `root` is not this data set; says what is expected there.
    """

    def __call__(self, *args: Any, **arguments: Any) -> Source: ...


@dataclass(frozen=True)
class Download:
    """Where a publisher keeps a set.

    Attributes:
        url: of the archive.
        folder: the one folder in it that holds the set, e.g. "flower_photos".
        sha256, md5: the publisher's checksum where it is known; never a guess.
        size: of the archive in bytes, where the publisher states it.
    """

    url: str
    folder: str
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None


def bundled_file(package: str, file: str) -> Path | None:
    """A file inside an installed package, found without importing it; None if it is not there."""
    found = find_spec(package)
    folders = [] if found is None else found.submodule_search_locations or []
    return next((path for folder in folders if (path := Path(folder, file)).is_file()), None)


def embedded_pool(
    classes: tuple[str, ...],
    grey: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    names: Sequence[str],
    *,
    test_fraction: float,
    split_seed: int,
) -> Source:
    """One pool of grey images that a package contains.

    Args:
        classes: class names.
        grey: [N, H, W], from 0 (black) to 1 (white).
        labels: class index of each, length N.
        names: of the images, length N.
        test_fraction, split_seed: as in `Source`.

    Raises:
        ConfigError: `test_fraction` is not between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"data.test_fraction={test_fraction:g}: must be above 0 and below 1.")
    pixels = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=-1)
    images = ImageSet(names, labels.astype(np.int64), pixels=pixels)
    return Source(classes, images, test_fraction=test_fraction, split_seed=split_seed)
