"""Images in class folders, either directly in the root or in `train`, `val` and `test` folders."""

from pathlib import Path

from graft.data.layout import class_folders, no_class_folders, read_class_folders, split_folders
from graft.data.sources.base import Source, require_test_fraction
from graft.errors import DataError

LAYOUT_HELP = (
    "Give data.root=FOLDER, where FOLDER has one folder of images per class, or train, val and test folders of them."
)

CLASS_FOLDERS = True


def load(root: Path, *, test_fraction: float = 0.2, split_seed: int = 0, more_endings: tuple[str, ...] = ()) -> Source:
    """Read the class folders in `root`.

    Args:
        root: contains class folders, or `train` with `val`, `test` or both.
        test_fraction: fraction of each class to test on where there is no val or test folder, in (0, 1).
        split_seed: seed of that draw.
        more_endings: of image files, besides those of pictures; supplied by Graft for the format of the run.

    Raises:
        ConfigError: `test_fraction` out of range.
        DataError: no class folders, a class without images, or splits without train.
    """
    parts = split_folders(root)
    if "train" in parts and len(parts) > 1:
        return _from_splits(parts, more_endings)
    if parts and "train" not in parts:
        name = next(iter(parts.values())).name
        raise DataError(f"data.root={root}: has a {name} folder but no train folder.\n{LAYOUT_HELP}")
    require_test_fraction(test_fraction)
    folder = parts.get("train", root)
    pool = read_class_folders(folder, prefix=f"{folder.name}/" if parts else "", more=more_endings)
    return Source(_class_names(folder), pool, test_fraction=test_fraction, split_seed=split_seed, test_on_rest=False)


def _from_splits(parts: dict[str, Path], more: tuple[str, ...]) -> Source:
    classes = _class_names(parts["train"])
    images = {
        name: read_class_folders(folder, prefix=f"{folder.name}/", classes=classes, more=more)
        for name, folder in parts.items()
    }
    return Source(classes, images["train"], images.get("val"), images.get("test"))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(class_folders(folder))
    if not names:
        raise DataError(no_class_folders(folder))
    return names
