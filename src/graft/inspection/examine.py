"""Decoding every image of a data set once, to describe its size, format and appearance."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.display import as_picture
from graft.data.images import ImageSet
from graft.data.reading import ENDINGS, opened, orientation, to_rgb
from graft.data.splits import Splits
from graft.data.stored import ImageFile
from graft.errors import UnreadableImage
from graft.inspection.duplicates import difference_hash, thumbnail
from graft.inspection.quality import Quality
from graft.system.cpu import available_cores

BLOCK = 1024
"""Images submitted to the threads at a time, which limits the memory for results."""

_PAGED = ("MPO", "TIFF")
"""Formats whose further images are views or pages, not frames of an animation."""


@dataclass(frozen=True)
class Collection:
    """All images of a data set, each once, with their splits.

    Attributes:
        classes: class names; labels are indices into them.
        images: the images of all splits, concatenated.
        parts: names of the splits: "train", "val", "test"; "val and test" if they are the same; "all".
        part: index into `parts` of each image, int64 [N].
        notes: of the splits.
        root: folder of the files; None for images in memory.
        unused: (name, reason) of files in the folder, and rows of a table, that are not in the data set.
        undivided: why the set cannot be split as configured; the images are then in the splits of their folders.
    """

    classes: tuple[str, ...]
    images: ImageSet
    parts: tuple[str, ...]
    part: npt.NDArray[np.int64]
    notes: tuple[str, ...] = ()
    root: Path | None = None
    unused: tuple[tuple[str, str], ...] = ()
    undivided: str | None = None

    @classmethod
    def of(cls, splits: Splits) -> "Collection":
        """The images of a data set that has been split."""
        return cls.joined(splits.classes, splits.distinct_parts(), splits.notes, splits.root, splits.unused)

    @classmethod
    def joined(
        cls,
        classes: tuple[str, ...],
        parts: dict[str, ImageSet],
        notes: tuple[str, ...] = (),
        root: Path | None = None,
        unused: tuple[tuple[str, str], ...] = (),
        undivided: str | None = None,
    ) -> "Collection":
        """The concatenated images of `parts` (split -> images), at least one."""
        first, *others = parts.values()
        for images in others:
            first = first.join(images)
        numbers = np.repeat(np.arange(len(parts)), [len(images) for images in parts.values()])
        return cls(classes, first, tuple(parts), numbers, notes, root, unused, undivided)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Description of one readable image.

    Attributes:
        size: (width, height) in pixels, upright.
        format: Pillow's name of the file format, e.g. "JPEG"; "" for images in memory.
        mode: Pillow's name of the pixel format in the file, e.g. "RGB", "CMYK", "I;16"; or the format of the run.
        rotated: whether it has an EXIF rotation, which is applied.
        animated: whether it has further frames, which are ignored.
        blank: whether all pixels have the same colour.
        digest: SHA-256 of size and pixels.
        hash, thumb: perceptual hash and thumbnail, see `duplicates`.
        quality: how it is taken.
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
    quality: Quality


Described = ImageFacts | UnreadableImage


def examine(images: ImageSet, done: Callable[[], object] = lambda: None) -> list[Described]:
    """Describe each image, or the error that makes it unreadable, in order; decodes with threads.

    Args:
        images: the images.
        done: called after each, for a progress bar.
    """

    def describe(index: int) -> Described:
        if not images.image_format.is_rgb:
            return _described_levels(images, index)
        if images.paths is None:
            return _described(as_picture(images.load(index)))
        return describe_file(images.paths[index])

    described: list[Described] = []
    with ThreadPoolExecutor(available_cores(), "examine") as pool:
        for start in range(0, len(images), BLOCK):
            for result in pool.map(describe, range(start, min(start + BLOCK, len(images)))):
                described.append(result)
                done()
    return described


def describe_file(path: ImageFile) -> Described:
    """Describe the image in `path`, or the error that makes it unreadable."""
    try:
        with opened(path) as image:
            animated = getattr(image, "is_animated", False) and image.format not in _PAGED
            rotated = orientation(image) != 1
            return _described(to_rgb(image), image.format or "", image.mode, rotated, animated)
    except UnreadableImage as error:  # a copy without the traceback, which references the file's content
        return UnreadableImage(error.path, error.kind, error.reason)


def _described_levels(images: ImageSet, index: int) -> Described:
    """Describe an image of another format than 8-bit RGB: its levels, and the picture that shows them."""
    try:
        levels = images.load(index)
    except UnreadableImage as error:
        return UnreadableImage(error.path, error.kind, error.reason)
    pixels = np.asarray(levels)
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    facts = _described(as_picture(levels), mode=str(images.image_format))
    blank = bool((pixels == pixels[:1, :1]).all())
    return replace(facts, format=_suffix(images.names[index]), blank=blank, digest=digest.digest())


def _suffix(name: str) -> str:
    """Pillow's name of the format that the ending of a file promises; "" if it is not one of a picture."""
    ending = PurePosixPath(name).suffix.lower()
    return next((format_ for format_, endings in ENDINGS.items() if ending in endings), "")


def _described(
    rgb: Image.Image, format_: str = "", mode: str = "RGB", rotated: bool = False, animated: bool = False
) -> ImageFacts:
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}".encode())
    digest.update(np.asarray(rgb).data)
    blank = all(low == high for low, high in rgb.getextrema())  # type: ignore[misc]
    grey = rgb.convert("L")
    return ImageFacts(
        rgb.size, format_, mode, rotated, animated, blank, digest.digest(), difference_hash(grey), thumbnail(grey),
        Quality.of(rgb),
    )  # fmt: skip
