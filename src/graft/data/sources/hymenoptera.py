"""Ants and bees of PyTorch's transfer-learning tutorial: 244 training and 153 validation photographs."""

from pathlib import Path

from graft.data.layout import class_folders, read_class_folders, split_folders
from graft.data.sources.base import Download, Source
from graft.errors import DataError

CLASS_FOLDERS = True
DOWNLOAD = Download("https://download.pytorch.org/tutorial/hymenoptera_data.zip", folder="hymenoptera_data")


def load(root: Path) -> Source:
    """Read `train` and `val`; the validation images are also the test images, as in the tutorial.

    The archive's `train/ants/imageNotFound.gif` is ignored, as torchvision's ImageFolder does.

    Raises:
        DataError: there is no train or val folder.
    """
    parts = split_folders(root)
    if not {"train", "val"} <= parts.keys():
        raise DataError(
            f"data.root={root}: must contain train and val folders, each with ants and bees.\n"
            f"For images of your own use data=folder data.root={root}."
        )
    classes = tuple(class_folders(parts["train"]))
    train, val = (read_class_folders(parts[part], prefix=f"{part}/", classes=classes) for part in ("train", "val"))
    return Source(classes, train, val=val)
