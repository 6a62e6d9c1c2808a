"""Anybody's own pictures: `train/val[/test]` folders of class folders, or one level of class folders."""

from pathlib import Path

from graft.data.layout import class_folders, no_class_folders, read_class_folders, split_folders
from graft.data.sources.base import Source
from graft.data.splits import stratified_fraction
from graft.errors import ConfigError, DataError

WANTED = (
    "Give data.root=FOLDER, where FOLDER has one folder of images a class, or such folders below train, val and test."
)

CLASS_FOLDERS = True


def load(root: Path, *, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """Read the class folders below `root`.

    Args:
        root: has `train` with `val` and/or `test`, or class folders.
        test_fraction: share of each class to test on, where there is no val or test folder.
        split_seed: seed of that draw.
    """
    parts = split_folders(root)
    if "train" in parts and len(parts) > 1:
        return _from_splits(parts)
    if parts and "train" not in parts:
        raise DataError(f"data.root={root}: has a {next(iter(parts.values())).name} folder but no train.\n{WANTED}")
    if not 0 < test_fraction < 1:
        raise ConfigError(f"data.test_fraction={test_fraction:g}: above 0 and below 1.")
    folder = parts.get("train", root)
    pool = read_class_folders(folder, prefix=f"{folder.name}/" if parts else "")
    classes = _class_names(folder)
    if len(classes) < 2:
        return Source(classes, pool)  # refused with the reason where all sets are
    try:
        train, test = stratified_fraction(
            pool.labels,
            test_fraction,
            split_seed,
            key="data.test_fraction",
            way_out="Add images, or provide a test folder.",
            classes=classes,
        )
    except DataError as error:
        raise DataError(f"data.root={root}: {error}") from error
    return Source(classes, pool.select(train), test=pool.select(test))


def _from_splits(parts: dict[str, Path]) -> Source:
    classes = _class_names(parts["train"])
    sets = {
        name: read_class_folders(folder, prefix=f"{folder.name}/", classes=classes) for name, folder in parts.items()
    }
    return Source(classes, sets["train"], sets.get("val"), sets.get("test"))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(class_folders(folder))
    if not names:
        raise DataError(no_class_folders(folder))
    return names
