"""What a source hands over, and what it may say about itself."""

from dataclasses import dataclass

from graft.data.images import ImageSet


@dataclass(frozen=True)
class Source:
    """A data set as its publisher divides it.

    Attributes:
        classes: class names in the order of the labels.
        train: the training images; with `test_fraction` the one pool of all images.
        val, test: as published; None where there is no such part.
        notes: what a reader of the results ought to know, one sentence each.
        test_fraction: the set is one pool: this share of each class is drawn as test, or with data.shots=K
            all but the K of each class that train. None: train and test are apart already.
        split_seed: seed of that draw, fixed so that the test images are the same whatever the run's seed.
    """

    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet | None = None
    test: ImageSet | None = None
    notes: tuple[str, ...] = ()
    test_fraction: float | None = None
    split_seed: int = 0


@dataclass(frozen=True)
class Download:
    """Where a publisher keeps a set.

    Attributes:
        url: of the archive.
        folder: the one folder in it that holds the set, e.g. "flower_photos".
        sha256, md5: the publisher's checksum where it is known; never a guess.
    """

    url: str
    folder: str
    sha256: str | None = None
    md5: str | None = None
