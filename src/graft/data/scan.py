"""A quick check of every image file before training: does it exist, is it an image, is it complete?

Only headers and last bytes are read; files that look damaged are decoded to be sure. Damage in the middle of a file is
found when the file is read (see `unreadable`), or by `graft inspect`, which decodes all files.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from graft.data.image_format import RGB, ImageFormat
from graft.data.images import ImageSet
from graft.data.layout import NO_FILE
from graft.data.reading import is_colour, is_picture, opened, read_bands, read_image, size_of
from graft.data.splits import Splits
from graft.data.stored import ImageFile, StoredImage
from graft.errors import ConfigError, DataError, UnreadableImage, listed
from graft.system.cpu import available_cores

ON_ERROR = ("raise", "skip")

MAX_CHECKED = 100_000
"""Number of files to check; of a larger set an evenly spaced sample, so that a run starts within seconds. A number,
not a time, so that the same images are excluded on every machine."""

CHUNK = 256
LISTED = 20
"""Number of files that an error names."""

Faults = dict[int, UnreadableImage]


def exclude_unreadable(splits: Splits, on_error: str, done: Callable[[int], object] = lambda count: None) -> Splits:
    """Exclude the images that cannot be read; the other images stay in their split.

    Args:
        splits: the images.
        on_error: "raise" is an error, also for rows of a table without a file, which `splits` lists as unused; "skip"
            excludes unreadable images and lists them in `unreadable` and `notes`.
        done: called with the number of further files checked, for a progress bar.

    Raises:
        DataError: images are unreadable and `on_error` is "raise", or without them a split or a training class would be
            empty.
        ConfigError: `on_error` has another value.
    """
    if on_error not in ON_ERROR:
        raise ConfigError(f"data.on_error={on_error}: must be {' or '.join(ON_ERROR)}.")
    parts = {id(part): part for part in splits.parts().values()}
    step = -(-sum(map(len, parts.values())) // MAX_CHECKED)
    colours: list[str] = []
    faults = {key: scan(part, step or 1, done, colours) for key, part in parts.items()}
    if colours:
        names = listed(sorted(colours), 3, counted=False)
        note = f"{_images(len(colours))} in colour converted to grey by luminance (data.channels=1): {names}"
        splits = replace(splits, notes=(*splits.notes, note))
    unreadable = [(parts[key].names[index], fault) for key, found in faults.items() for index, fault in found.items()]
    missing = [
        (row, UnreadableImage(Path(row), "missing", "no such file")) for row, why in splits.unused if why == NO_FILE
    ]
    if on_error == "raise" and (unreadable or missing):
        raise DataError(_refusal(splits, [*missing, *unreadable]))
    if not unreadable:
        return splits
    kept = {key: part.select(np.delete(np.arange(len(part)), list(faults[key]))) for key, part in parts.items()}
    train, val, test = (kept[id(part)] for part in splits.parts().values())
    names = listed([name for name, _ in unreadable], LISTED, counted=False)
    note = f"{_images(len(unreadable))} excluded, unreadable (data.on_error=skip): {names}"
    reasons = tuple((name, f"{fault.kind}: {fault.reason}") for name, fault in unreadable)
    readable = replace(splits, train=train, val=val, test=test, notes=(*splits.notes, note), unreadable=reasons)
    return _require_images(readable, splits)


def _refusal(splits: Splits, unreadable: Sequence[tuple[str, UnreadableImage]]) -> str:
    lines = [f"  {name}  ({fault.kind}: {fault.reason})" for name, fault in unreadable[:LISTED]]
    more = len(unreadable) - len(lines)
    return "\n".join(
        [
            f"data.root={splits.root}: {_images(len(unreadable))} cannot be read:",
            *lines,
            *([f"  and {more:,} more; graft inspect lists all"] if more else []),
            "Remove or replace them, or set data.on_error=skip to exclude them.",
        ]
    )


def _require_images(splits: Splits, before: Splits) -> Splits:
    """`splits` unchanged.

    Raises:
        DataError: a split, or a class that had training images before, has become empty.
    """
    for name, part in splits.parts().items():
        if not len(part):
            raise DataError(f"data.root={splits.root}: none of the {name} images can be read.")
    counts, earlier = splits.counts()["train"], before.counts()["train"]
    empty = [name for name, count in counts.items() if earlier[name] and not count]
    if empty:
        raise DataError(
            f'data.root={splits.root}: none of the training images of class "{empty[0]}" can be read.\n'
            "Replace them, or remove the class."
        )
    return splits


def scan(
    images: ImageSet,
    step: int = 1,
    done: Callable[[int], object] = lambda count: None,
    colours: list[str] | None = None,
) -> Faults:
    """Check every `step`-th file; index → error of the files that cannot be read.

    Args:
        images: the images; those in memory are not checked.
        step: 1 checks all files.
        done: called with the number of further files checked.
        colours: gets the names of coloured files where the images are to be grey.
    """
    paths, image_format = images.paths, images.image_format
    if paths is None:
        return {}
    grey = image_format.channels == 1 and image_format.bands is None
    chosen = range(0, len(paths), step)

    def check(start: int) -> list[tuple[int, UnreadableImage]]:
        indices = chosen[start : start + CHUNK]
        checked = [(index, fault) for index in indices if (fault := quick_check(paths[index], image_format))]
        if grey and colours is not None:
            readable = (index for index in indices if index not in dict(checked))
            colours.extend(images.names[index] for index in readable if is_colour(paths[index]))
        return checked

    faults: Faults = {}
    with ThreadPoolExecutor(min(32, 4 * available_cores()), "scan") as pool:  # they wait for the disk
        starts = range(0, len(chosen), CHUNK)
        for start, found in zip(starts, pool.map(check, starts), strict=True):
            faults.update(found)
            done(min(CHUNK * step, len(paths) - start * step))
    return faults


def quick_check(path: ImageFile, image_format: ImageFormat = RGB) -> UnreadableImage | None:
    """The error of a file, as far as its header and its last bytes show; None if it seems complete.

    What an archive already knows about its images is not read again, so that its images of other bands than those of
    the format are found when they are read.
    """
    if isinstance(path, StoredImage) and path.archive.faults is not None:
        known = path.archive.faults.get(path.number)
        return None if known is None else UnreadableImage(str(path), *known)
    try:
        if not image_format.is_rgb:
            size_of(path, image_format)
            if not is_picture(path, image_format):
                return None
        with opened(path) as image:
            complete = _seems_complete(image)
        if not complete and image_format.is_rgb:
            read_image(path)
        elif not complete:
            read_bands(path, image_format)
    except UnreadableImage as error:
        return UnreadableImage(error.path, error.kind, error.reason)
    return None


def _seems_complete(image: Image.Image) -> bool:
    file = getattr(image, "fp", None)
    if file is None:  # Pillow has read the whole file
        return False
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    file.seek(max(0, size - 64))
    tail = file.read(64)
    if image.format in ("JPEG", "MPO"):
        return b"\xff\xd9" in tail
    if image.format == "PNG":
        return b"IEND" in tail
    if image.format == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _end_of_tiff(image) <= size
    tiles = getattr(image, "tile", None)  # BMP, PPM and other uncompressed formats
    return size >= (tiles[0].offset if tiles else 0) + image.width * image.height * len(image.getbands())


_STRIPS, _TILES = (273, 279), (324, 325)
"""TIFF tags of the offsets of its parts, and of their lengths in bytes."""


def _end_of_tiff(image: TiffImagePlugin.TiffImageFile) -> int:
    """Offset of the end of the last part, in bytes."""
    ends = [
        begin + length
        for offsets, lengths in (_STRIPS, _TILES)
        for begin, length in zip(_numbers(image, offsets), _numbers(image, lengths), strict=False)
    ]
    return max(ends, default=0)


def _numbers(image: TiffImagePlugin.TiffImageFile, tag: int) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"
