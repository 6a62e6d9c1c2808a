"""Every picture of a data set looked at once: whether it can be read, how large it is, what it looks like."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.images import ImageSet, opened, orientation, to_rgb
from graft.data.splits import Splits
from graft.errors import UnreadableImage
from graft.inspection.duplicates import difference_hash, miniature
from graft.system.cpu import available_cores

BLOCK = 1024
"""So many pictures are handed to the threads at a time, which bounds what waits in memory."""

_PAGED = ("MPO", "TIFF")
"""Formats whose further pictures are other views or pages, not an animation."""


@dataclass(frozen=True)
class Collection:
    """A data set as it is to be inspected: every picture once.

    Attributes:
        classes: class names; a label is an index into them.
        images: the pictures of all parts, one part after the other.
        parts: what the parts are called: "train", "val", "test"; "val and test" where one serves as both; "all".
        part: index into `parts` of each picture, int64 [N].
        notes: what the division says of itself.
        root: where the files lie; None when there are none.
        undivided: why the set could not be divided as asked; then the pictures are as they lie.
    """

    classes: tuple[str, ...]
    images: ImageSet
    parts: tuple[str, ...]
    part: npt.NDArray[np.int64]
    notes: tuple[str, ...] = ()
    root: Path | None = None
    undivided: str | None = None

    @classmethod
    def of(cls, splits: Splits) -> "Collection":
        """A data set that could be divided."""
        one = splits.test is splits.val
        parts = {"train": splits.train, "val and test" if one else "val": splits.val}
        return cls.joined(splits.classes, parts if one else parts | {"test": splits.test}, splits.notes, splits.root)

    @classmethod
    def joined(
        cls,
        classes: tuple[str, ...],
        parts: dict[str, ImageSet],
        notes: tuple[str, ...] = (),
        root: Path | None = None,
        undivided: str | None = None,
    ) -> "Collection":
        """The `parts`, at least one, put together."""
        first, *others = parts.values()
        for images in others:
            first = first.join(images)
        numbers = np.repeat(np.arange(len(parts)), [len(images) for images in parts.values()])
        return cls(classes, first, tuple(parts), numbers, notes, root, undivided)


@dataclass(frozen=True, slots=True)
class Look:
    """What there is to know of one picture.

    Attributes:
        size: (width, height) as it stands upright, in pixels.
        format: Pillow's name of the file's format, e.g. "JPEG"; "" for pictures in memory.
        mode: Pillow's name of the pixels' kind in the file, e.g. "RGB", "CMYK", "I;16".
        rotated: the camera was turned (EXIF); it is shown upright.
        animated: has further frames; the first is taken.
        blank: all of one colour.
        digest: SHA-256 of size and RGB pixels.
        hash, thumb: what near duplicates are known by, see `duplicates`.
    """

    size: tuple[int, int]
    format: str
    mode: str
    rotated: bool
    animated: bool
    blank: bool
    digest: bytes
    hash: bytes
    thumb: bytes


Seen = Look | UnreadableImage


def examine(images: ImageSet, done: Callable[[], object] = lambda: None) -> list[Seen]:
    """Each picture decoded and described, or why it cannot be read; in order, by threads.

    Args:
        images: the pictures.
        done: called after each, for a progress bar.
    """

    def look(index: int) -> Seen:
        if images.paths is None:
            return _described(images.load(index))
        return look_at(images.paths[index])

    seen: list[Seen] = []
    with ThreadPoolExecutor(available_cores(), "examine") as pool:
        for start in range(0, len(images), BLOCK):
            for result in pool.map(look, range(start, min(start + BLOCK, len(images)))):
                seen.append(result)
                done()
    return seen


def look_at(path: Path) -> Seen:
    """The picture in `path` described, or why it cannot be read."""
    try:
        with opened(path) as image:
            animated = getattr(image, "is_animated", False) and image.format not in _PAGED
            rotated = orientation(image) != 1
            return _described(to_rgb(image), image.format or "", image.mode, rotated, animated)
    except UnreadableImage as error:  # anew, without the stack, which holds on to the file's content
        return UnreadableImage(error.path, error.kind, error.reason)


def _described(
    rgb: Image.Image, format_: str = "", mode: str = "RGB", rotated: bool = False, animated: bool = False
) -> Look:
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode())
    digest.update(np.asarray(rgb).data)
    blank = all(low == high for low, high in rgb.getextrema())  # type: ignore[misc]
    grey = rgb.convert("L")
    return Look(
        rgb.size, format_, mode, rotated, animated, blank, digest.digest(), difference_hash(grey), miniature(grey)
    )
