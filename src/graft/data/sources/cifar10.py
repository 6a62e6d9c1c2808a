"""CIFAR-10: 50,000 training and 10,000 test pictures of 32x32, as torchvision's batches or class folders."""

from pathlib import Path

import numpy as np

from graft.data.images import ImageSet
from graft.data.layout import read_class_folders, split_folders
from graft.data.sources.base import Download, Source
from graft.errors import DataError

DOWNLOAD = Download(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",  # keras.datasets.cifar10
    md5="c58f30108f718f92721af3b95e74349a",  # torchvision.datasets.CIFAR10.tgz_md5
)
BATCHES, IMAGES = DOWNLOAD.folder, "cifar10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def present(root: Path) -> bool:
    """Whether the set lies at or below `root`, in either form."""
    return _batches(root) is not None or _images(root) is not None


def target(root: Path) -> Path:
    """Where the archive's folder belongs: below `root`, unless `root` is that folder."""
    if root.name == BATCHES:
        return root
    return (root.parent if root.name == IMAGES else root) / BATCHES


def load(root: Path) -> Source:
    """Read `cifar-10-batches-py/`, else `cifar10/{train,test}/CLASS/`; `root` is one of them or holds it."""
    if (batches := _batches(root)) is not None:
        return _read_batches(batches)
    images = _images(root)
    if images is None:
        raise DataError(f"data.root={root}: neither {BATCHES}/ nor {IMAGES}/{{train,test}}/CLASS/ is there.")
    parts = split_folders(images)
    train, test = (read_class_folders(parts[part], prefix=f"{part}/", classes=CLASSES) for part in ("train", "test"))
    return Source(CLASSES, train, test=test)


def _batches(root: Path) -> Path | None:
    places = (root / BATCHES, target(root))
    return next((place for place in places if (place / "data_batch_1").is_file()), None)


def _images(root: Path) -> Path | None:
    places = (root / IMAGES, root)
    return next(
        (place for place in places if place.is_dir() and {"train", "test"} <= split_folders(place).keys()),
        None,
    )


def _read_batches(folder: Path) -> Source:
    from torchvision.datasets import CIFAR10

    def part(name: str) -> ImageSet:
        published = CIFAR10(root=str(folder.parent), train=name == "train", download=False)
        labels = np.asarray(published.targets, dtype=np.int64)
        names = [f"{name}/{CLASSES[label]}/{i:05d}" for i, label in enumerate(labels.tolist())]
        return ImageSet(names, labels, pixels=published.data)

    try:
        return Source(CLASSES, part("train"), test=part("test"))
    except RuntimeError as error:
        raise DataError(
            f"{folder}: incomplete or damaged (a file's MD5 is not the published one).\n"
            f"Remove the folder to have it fetched again from {DOWNLOAD.url}."
        ) from error
