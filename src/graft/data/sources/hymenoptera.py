"""Ants and bees, from PyTorch's transfer-learning tutorial: 244 training and 153 validation photographs."""

from pathlib import Path

from graft.data.layout import class_folders, read_class_folders, split_folders
from graft.data.sources.base import Download, Source
from graft.errors import DataError

CLASS_FOLDERS = True
DOWNLOAD = Download("https://download.pytorch.org/tutorial/hymenoptera_data.zip", folder="hymenoptera_data")


def load(root: Path) -> Source:
    """Read `train` and `val`; there is no test part, so validation serves as test (the tutorial does the
    same).

    The archive's stray `train/ants/imageNotFound.gif` is no image, as for torchvision's ImageFolder.
    """
    parts = split_folders(root)
    if not {"train", "val"} <= parts.keys():
        raise DataError(
            f"data.root={root}: wanted {root.name}/train and {root.name}/val, each with ants and bees.\n"
            f"For images of your own use data=folder data.root={root}."
        )
    classes = tuple(class_folders(parts["train"]))
    train, val = (read_class_folders(parts[part], prefix=f"{part}/", classes=classes) for part in ("train", "val"))
    return Source(classes, train, val=val)
