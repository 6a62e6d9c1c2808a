"""Reading folders of class folders, the same way on every machine and file system."""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from graft.data.images import EXTENSIONS, ImageSet
from graft.data.packed import Packed
from graft.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""What the folder of a split may be called, in any case."""

_JUNK = ("__MACOSX",)


def image_files(folder: Path) -> list[tuple[str, Path]]:
    """(POSIX path below `folder`, file) of each image at any depth, sorted by name in code point order.

    Hidden files and folders are passed over (`._x.jpg` is no photograph); linked folders are followed, once.
    """
    return list(walk_images(folder))


def walk_images(folder: Path) -> Iterator[tuple[str, Path]]:
    """What `image_files` lists, one by one: of all names, only those of the folders on the way are in memory."""
    return ((name, Path(path)) for name, path in _walk(str(folder), "", set()))


def _walk(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for name, found, is_folder in sorted(_visible(folder)):
        if is_folder:
            yield from _walk(os.path.join(folder, found), prefix + name, seen)
        elif found.lower().endswith(EXTENSIONS):
            yield prefix + name, os.path.join(folder, found)


def _visible(folder: Path | str) -> Iterator[tuple[str, str, bool]]:
    """(plain name, name, whether a folder) of what is not hidden; a folder's plain name ends in a slash, so that
    sorting folder by folder gives the order of whole paths."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name not in _JUNK:
                is_folder = _is_folder(entry)
                yield _plain(entry.name) + "/" * is_folder, entry.name, is_folder


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; a link that cannot be followed is none."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or into a folder that may not be entered
        return False


def ignored_files(folders: Iterable[Path], root: Path | None) -> list[str]:
    """Visible files directly in `folders` that are no images by their ending: POSIX paths below `root`, sorted."""
    found = []
    for folder in folders:
        below = folder.relative_to(root) if root is not None and folder.is_relative_to(root) else folder
        prefix = "" if below == Path() else f"{_plain(below.as_posix())}/"
        found += [
            prefix + name
            for name, _, is_folder in _visible(folder)
            if not is_folder and not name.lower().endswith(EXTENSIONS)
        ]
    return sorted(found)


def class_folders(folder: Path) -> dict[str, Path]:
    """Name → folder of each visible folder directly in `folder`, sorted by name in code point order.

    Raises:
        DataError: two whose names are the same but for how an accent is stored.
    """
    found: dict[str, Path] = {}
    for name, entry, is_folder in sorted(_visible(folder)):
        if is_folder and found.setdefault(name[:-1], folder / entry) != folder / entry:
            raise DataError(
                f"{folder}: there are two folders named {name[:-1]}, with its accents stored in two ways.\n"
                "Put their images into one."
            )
    return dict(sorted(found.items()))


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of `root` that are named as splits: "train", "val" and "test" → folder, those there are.

    Raises:
        DataError: two for one split, e.g. "val" and "validation", or "Train" and "train".
    """
    folders = class_folders(root)
    found = {}
    for split, names in SPLIT_NAMES.items():
        named = [folder for name, folder in folders.items() if name.lower() in names]
        if len(named) > 1:
            raise DataError(f"{root}: {named[0].name} and {named[1].name} are both {split} folders.\nKeep one of them.")
        if named:
            found[split] = named[0]
    return found


def read_class_folders(folder: Path, *, prefix: str = "", classes: Sequence[str] | None = None) -> ImageSet:
    """All images of a folder of class folders, class by class, each sorted by name.

    Args:
        folder: has one folder a class.
        prefix: put before each image's name, e.g. "train/".
        classes: the classes in the order of their labels; None: the folders' names, sorted. A folder that is
            not among them is an error, one that is missing is not.

    Raises:
        DataError: no class folders, a class folder without images, or one that is not among `classes`.
    """
    folders = class_folders(folder)
    if not folders:
        raise DataError(no_class_folders(folder))
    order = list(classes) if classes is not None else list(folders)
    strangers = sorted(folders.keys() - set(order))
    if strangers:
        raise DataError(
            f'{folders[strangers[0]]}: class "{strangers[0]}" is not among the training classes '
            f"({', '.join(order)}).\nRename or remove that folder, or add training images of the class."
        )
    files = {name: _packed(path, f"{prefix}{name}/") for name, path in folders.items()}
    empty = [name for name, (names, _) in files.items() if not len(names)]
    if empty:
        raise DataError(
            f"{folders[empty[0]]}: no images in this class folder (looked for {', '.join(EXTENSIONS)}).\n"
            "Add images to it, or remove the folder."
        )
    return _labelled(files, order)


def read_as_found(root: Path) -> tuple[tuple[str, ...], dict[str, ImageSet]]:
    """(classes, part → images) of the class folders in `root` or in its split folders, where "all" is the one part.

    Nothing is demanded: a class may have no images, or be in one part only.
    """
    parts = split_folders(root) or {"all": root}
    folders = {part: class_folders(folder) for part, folder in parts.items()}
    classes = tuple(sorted({name for found in folders.values() for name in found}))
    if not classes:
        return (), {}
    prefixes = {part: "" if part == "all" else f"{folder.name}/" for part, folder in parts.items()}
    return classes, {
        part: _labelled(
            {name: _packed(path, f"{prefixes[part]}{name}/") for name, path in folders[part].items()}, classes
        )
        for part in parts
    }


Files = tuple[Packed[str], Packed[Path]]
"""Names and paths of images."""


def _packed(folder: Path, prefix: str) -> Files:
    """All images below `folder`, sorted by name; names begin with `prefix`."""
    found = list(_walk(str(folder), prefix, set()))
    return Packed.of((name for name, _ in found), str), Packed.of((path for _, path in found), Path)


def _labelled(files: Mapping[str, Files], classes: Sequence[str]) -> ImageSet:
    none: Files = Packed.of((), str), Packed.of((), Path)
    found = [files.get(name, none) for name in classes]
    return ImageSet(
        names=Packed.joined([names for names, _ in found]),
        labels=np.repeat(np.arange(len(classes)), [len(names) for names, _ in found]),
        paths=Packed.joined([paths for _, paths in found]),
    )


def no_class_folders(folder: Path) -> str:
    """What to tell someone whose folder holds no class folders."""
    loose = sum(1 for entry in folder.iterdir() if entry.name.lower().endswith(EXTENSIONS))
    found = f"{loose} images but no class folders" if loose else "no images"
    return (
        f"{folder}: {found}.\n"
        f"Wanted: one folder of images a class ({folder.name}/cats/1.jpg, {folder.name}/dogs/2.jpg, …), "
        f"or such folders below {folder.name}/train, {folder.name}/val and {folder.name}/test."
    )


def _plain(name: str) -> str:
    """One spelling for accented letters, however the file system stores them, and one that any file or terminal can
    hold, whatever bytes a name is made of (an old archive's Korean: "\\xb9\\xfa.jpg")."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
