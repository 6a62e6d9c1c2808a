"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels, in batches or class folders."""

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
    """Whether `root` is or contains the data set, as batches or as class folders."""
    return _batches(root) is not None or _images(root) is not None


def target(root: Path) -> Path:
    """Where to unpack the archive's folder: in `root`, unless `root` is named as that folder."""
    if root.name == BATCHES:
        return root
    return (root.parent if root.name == IMAGES else root) / BATCHES


def load(root: Path) -> Source:
    """Read `cifar-10-batches-py/`, else `cifar10/{train,test}/CLASS/`; `root` is one of them or contains it.

    Raises:
        DataError: neither is there, or the batches are incomplete or damaged.
    """
    if (batches := _batches(root)) is not None:
        return _read_batches(batches)
    images = _images(root)
    if images is None:
        raise DataError(f"data.root={root}: contains neither {BATCHES}/ nor {IMAGES}/{{train,test}}/CLASS/.")
    parts = split_folders(images)
    train, test = (read_class_folders(parts[part], prefix=f"{part}/", classes=CLASSES) for part in ("train", "test"))
    return Source(CLASSES, train, test=test)


def _batches(root: Path) -> Path | None:
    candidates = (root / BATCHES, target(root))
    return next((folder for folder in candidates if (folder / "data_batch_1").is_file()), None)


def _images(root: Path) -> Path | None:
    candidates = (root / IMAGES, root)
    return next(
        (folder for folder in candidates if folder.is_dir() and {"train", "test"} <= split_folders(folder).keys()),
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
            f"Remove the folder, and the next run downloads it again from {DOWNLOAD.url}."
        ) from error
