"""A stream of any number of images: found lazily, decoded slightly ahead, in a fixed order."""

import glob
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
from PIL import Image

from graft.data.bands import Levels
from graft.data.image_format import RGB, ImageFormat
from graft.data.layout import walk_images
from graft.data.reading import EXTENSIONS, load_file, load_picture
from graft.data.sources.table import listed_images
from graft.data.tables import TABLES
from graft.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """An image file, and its POSIX path relative to the folder in which it was found."""

    path: Path
    relative: str

    def read(self, image_format: ImageFormat = RGB) -> Image.Image | Levels:
        """The upright picture in a format, as `ImageSet.load`; raises UnreadableImage."""
        return load_file(self.path, image_format)

    def __str__(self) -> str:
        """The path as text; bytes that are not UTF-8 are escaped."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class InMemory:
    """A picture, or an array [H, W, C] of another format than 8-bit RGB, in memory, called `name`."""

    image: Image.Image | npt.NDArray[Any]
    name: str

    def read(self, image_format: ImageFormat = RGB) -> Image.Image | Levels:
        """The upright picture in a format; raises UnreadableImage if it has other bands."""
        return load_picture(self.image, image_format, self.name)

    def __str__(self) -> str:
        return self.name


P = TypeVar("P", Found, Found | InMemory)


def find_images(sources: Sequence[str], more: tuple[str, ...] = ()) -> Iterator[Found]:
    """Iterate over the image files that `sources` name.

    A source is a file (with any ending), a folder (all images in it at any depth), a pattern such as `photos/*.jpg`
    or `photos/**/1*.png` (all images that match; without `**` also all images in folders that match), or a table of
    file names (CSV, TSV, Parquet).

    Images are sorted by name within each source, those of a table by row; only the names in the current folders are in
    memory. Hidden files and folders are ignored.

    Args:
        sources: as described.
        more: endings of image files besides EXTENSIONS.

    Raises:
        DataError: a source does not exist (before the first image), or a folder cannot be listed.
    """
    for source in sources:
        if not os.path.lexists(os.path.expanduser(source)) and not glob.has_magic(source):
            raise DataError(f"source={source}: no such file or folder.")
    return _find(sources, more)


def _find(sources: Sequence[str], more: tuple[str, ...]) -> Iterator[Found]:
    for source in sources:
        path = Path(source).expanduser()
        try:
            if path.is_dir():
                yield from _in_folder(path, more)
            elif path.suffix.lower() in TABLES and path.is_file():
                yield from (Found(image, name) for name, image in listed_images(path))
            elif os.path.lexists(path):
                yield Found(path, path.name)
            else:
                yield from _matching(path, more)
        except OSError as error:
            raise DataError(f"source={source}: {error.filename} cannot be listed ({error.strerror}).") from error


def _in_folder(folder: Path, more: tuple[str, ...]) -> Iterator[Found]:
    return (Found(path, name) for name, path in walk_images(folder, more))


def _matching(pattern: Path, more: tuple[str, ...]) -> Iterator[Found]:
    parts = pattern.parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    start = Path(*parts[:first])
    whole_folders = "**" not in parts
    for path in _expand(start, parts[first:]):
        if path.is_dir() and whole_folders:
            yield from (
                Found(found.path, f"{path.relative_to(start)}/{found.relative}") for found in _in_folder(path, more)
            )
        elif path.name.lower().endswith((*EXTENSIONS, *more)) and not path.is_dir():
            yield Found(path, path.relative_to(start).as_posix())


def _expand(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """The paths in `folder` that the `parts` of a pattern match, sorted by name in each folder; `**` is any depth."""
    part, *rest = parts
    last = not rest
    if part == "**":
        yield from _expand(folder, rest or ["*"])
        for name in _names(folder):
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                yield from _expand(folder / name, parts)
    elif not glob.has_magic(part):
        if (folder / part).exists():
            yield from [folder / part] if last else _expand(folder / part, rest)
    else:
        for name in _names(folder):
            if fnmatchcase(name, part):
                yield from [folder / name] if last else _expand(folder / name, rest)


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def read_ahead(
    found: Iterable[P], transform: Callable[..., T], *, workers: int, ahead: int, image_format: ImageFormat = RGB
) -> Generator[tuple[P, T | DataError]]:
    """Decode and transform images in threads; yields (image, result or the error that makes it unreadable) in order.

    Args:
        found: the image files, consumed only as far as needed.
        transform: called with images as `ImageSet.load` returns them.
        workers: number of threads.
        ahead: number of results kept in memory at most.
        image_format: in which the images are read.
    """

    def read(picture: P) -> T | DataError:
        try:
            image = picture.read(image_format)
        except DataError as error:
            return error
        return transform(image)

    waiting: deque[tuple[P, Future[T | DataError]]] = deque()
    pool = ThreadPoolExecutor(workers, "read")
    try:
        for picture in found:
            waiting.append((picture, pool.submit(read, picture)))
            if len(waiting) >= ahead:
                first, result = waiting.popleft()
                yield first, result.result()
        for first, result in waiting:
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
