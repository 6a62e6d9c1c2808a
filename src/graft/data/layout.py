"""Reading class folders, in the same order on every machine and file system."""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from graft.data.images import ImageSet
from graft.data.packed import Packed
from graft.data.reading import EXTENSIONS, OTHER_IMAGES
from graft.errors import DataError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Split -> names that its folder may have, in upper or lower case."""

JUNK = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"),
        *("thumbs.db", "desktop.ini"),
    }
)
"""Names, in lower case, that operating systems and file servers leave in folders; ignored like hidden files."""


def image_files(folder: Path) -> list[tuple[str, Path]]:
    """(POSIX path relative to `folder`, file) of each image at any depth, sorted by name in code point order.

    Hidden files and folders are ignored (`._x.jpg` is not a photograph); links to folders are followed once.
    """
    return list(walk_images(folder))


def walk_images(folder: Path, more: tuple[str, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Iterate over what `image_files` lists, with only the names in the current folders in memory.

    Args:
        folder: where to look.
        more: endings of image files besides EXTENSIONS.
    """
    return ((name, Path(path)) for name, path in _walk(str(folder), "", more))


def _walk(folder: str, prefix: str, more: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    endings = (*EXTENSIONS, *more)
    files = _all_files(folder, prefix, set())
    return ((name, path) for name, path, entry in files if entry.lower().endswith(endings))


def _all_files(folder: str, prefix: str, visited: set[tuple[int, int]]) -> Iterator[tuple[str, str, str]]:
    """(normalised name, path, name in its folder) of each visible file in `folder` at any depth, sorted."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    for name, entry, is_folder in sorted(_visible(folder)):
        path = os.path.join(folder, entry)
        if is_folder:
            yield from _all_files(path, prefix + name, visited)
        else:
            yield prefix + name, path, entry


def _visible(folder: Path | str) -> Iterator[tuple[str, str, bool]]:
    """(normalised name, name, whether it is a folder) of each entry that is not hidden.

    The normalised name of a folder ends in a slash, so that sorting each folder gives the order of complete paths.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in JUNK:
                folder_ = is_folder(entry)
                yield _normalised(entry.name) + "/" * folder_, entry.name, folder_


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link that cannot be followed is not."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder without permission
        return False


NOT_READ = "image format that is not read"
NO_IMAGE = "not an image"
NOT_IN_SET = "not part of the data set"

NO_NAME = "without an image"
NO_FILE = "without a file"
NO_LABEL = "without a label"
NO_SPLIT = "without a split"
REPEATED = "repeating another row"
CONTRADICTION = "rows that contradict each other"

UNUSED = {
    **dict.fromkeys((NOT_READ, NO_IMAGE, NOT_IN_SET), ("file", "files")),
    **dict.fromkeys((NO_NAME, NO_FILE, NO_LABEL, NO_SPLIT, REPEATED), ("row", "rows")),
    CONTRADICTION: ("image", "images"),
}
"""Reason why a file, or a row of a table, is not used -> what it is called, one and several."""


def unused_files(
    root: Path, paths: Sequence[Path], *, searched: Sequence[str] | None = None, described: Sequence[Path] = ()
) -> list[tuple[str, str]]:
    """(POSIX path relative to `root`, reason) of each visible file that is not in a data set, sorted by path.

    Args:
        root: folder of the data set.
        paths: of its images; if they are not in `root`, nothing is listed.
        searched: folders in `root` to look at; None: all of it.
        described: further files of the data set, e.g. its table.
    """
    found: list[tuple[str, str, str]] = []
    images = 0
    begins = [(root, "")] if searched is None else [(root / name, f"{name}/") for name in searched]
    own = {os.path.abspath(path) for path in described}
    for name, path, _ in (each for start, prefix in begins for each in _all_files(str(start), prefix, set())):
        if own and os.path.abspath(path) in own:
            continue
        ending = os.path.splitext(name)[1].lower()
        reason = NOT_IN_SET if ending in EXTENSIONS else NOT_READ if ending in OTHER_IMAGES else NO_IMAGE
        images += reason == NOT_IN_SET
        found.append((name, path, reason))
    if images == len(paths):  # all of them are used
        return sorted((name, reason) for name, _, reason in found if reason != NOT_IN_SET)
    used = set(map(os.path.normpath, paths.strings() if isinstance(paths, Packed) else map(str, paths)))
    unused = [(name, reason) for name, path, reason in found if os.path.normpath(path) not in used]
    return sorted(unused) if len(unused) < len(found) else []


def class_folders(folder: Path) -> dict[str, Path]:
    """Name → folder of each visible folder directly in `folder`, sorted by name in code point order.

    Raises:
        DataError: two names that differ only in the encoding of an accent.
    """
    found: dict[str, Path] = {}
    for name, entry, is_folder in sorted(_visible(folder)):
        if is_folder and found.setdefault(name[:-1], folder / entry) != folder / entry:
            raise DataError(
                f"{folder}: there are two folders named {name[:-1]}, which differ in the encoding of an accent.\n"
                "Move their images into one."
            )
    return dict(sorted(found.items()))


def split_folders(root: Path) -> dict[str, Path]:
    """Split ("train", "val" or "test") → its folder in `root`, for the splits that exist.

    A folder of such a name that contains images but no folders, next to folders of other names, is a class: a data set
    of vehicles may have a class "train".

    Raises:
        DataError: two for one split, e.g. "val" and "validation", or "Train" and "train".
    """
    folders = class_folders(root)
    found = {}
    split_names = {name for names in SPLIT_NAMES.values() for name in names}
    others = any(name.lower() not in split_names for name in folders)
    for split, names in SPLIT_NAMES.items():
        named = [folder for name, folder in folders.items() if name.lower() in names]
        named = [folder for folder in named if not (others and _is_class_folder(folder))]
        if len(named) > 1:
            raise DataError(f"{root}: {named[0].name} and {named[1].name} are both {split} folders.\nKeep one of them.")
        if named:
            found[split] = named[0]
    return found


def _is_class_folder(folder: Path) -> bool:
    """Whether a folder contains images and no folders."""
    entries = list(_visible(folder))
    return not any(is_folder for _, _, is_folder in entries) and any(
        entry.lower().endswith(EXTENSIONS) for _, entry, _ in entries
    )


def read_class_folders(
    folder: Path, *, prefix: str = "", classes: Sequence[str] | None = None, more: tuple[str, ...] = ()
) -> ImageSet:
    """All images in the class folders of `folder`, by class and then by name.

    Args:
        folder: contains one folder per class.
        prefix: of each image's name, e.g. "train/".
        classes: class names; labels are indices into them. None: the names of the folders, sorted. A missing folder is
            no error.
        more: endings of image files besides EXTENSIONS.

    Raises:
        DataError: no class folders, a class folder without images, or one that is not among `classes`.
    """
    folders = class_folders(folder)
    if not folders:
        raise DataError(no_class_folders(folder))
    order = list(classes) if classes is not None else list(folders)
    unknown = sorted(folders.keys() - set(order))
    if unknown:
        raise DataError(
            f'{folders[unknown[0]]}: class "{unknown[0]}" is not among the training classes '
            f"({', '.join(order)}).\nRename or remove that folder, or add training images of the class."
        )
    files = {name: _packed(path, f"{prefix}{name}/", more) for name, path in folders.items()}
    empty = [name for name, (names, _) in files.items() if not len(names)]
    if empty:
        raise DataError(
            f"{folders[empty[0]]}: no images in this class folder (looked for {', '.join((*EXTENSIONS, *more))}).\n"
            "Add images to it, or remove the folder."
        )
    return _labelled(files, order)


def read_as_found(root: Path) -> tuple[tuple[str, ...], dict[str, ImageSet]]:
    """(classes, split → images) of the class folders in `root` ("all") or in its split folders.

    Unlike `read_class_folders` it accepts classes without images and classes that are in one split only.
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
"""Names and paths of image files."""


def _packed(folder: Path, prefix: str, more: tuple[str, ...] = ()) -> Files:
    """All images in `folder` at any depth, sorted by name; `prefix` is added to their names."""
    found = list(_walk(str(folder), prefix, more))
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
    """Error message for a folder without class folders."""
    loose = sum(1 for entry in folder.iterdir() if entry.name.lower().endswith(EXTENSIONS))
    found = f"{loose} images but no class folders" if loose else "no images"
    return (
        f"{folder}: {found}.\n"
        f"Expected: one folder of images per class ({folder.name}/cats/1.jpg, {folder.name}/dogs/2.jpg, …), "
        f"or such folders in {folder.name}/train, {folder.name}/val and {folder.name}/test."
    )


def _normalised(name: str) -> str:
    """`name` in Unicode's composed form (NFC), with bytes that are not UTF-8 as escapes ("\\xb9\\xfa.jpg").

    File systems store accents in two forms, and names in old archives may be in any encoding.
    """
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
