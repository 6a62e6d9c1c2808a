"""A quick look at every file before training: is it there, is it a picture, does it end where a picture ends?

Only headers and last bytes are read, and what looks suspicious is decoded, so that no sound file is accused. Damage in
the middle of a file is found when it is read (see `unreadable`), or by `graft inspect`, which decodes everything.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from graft.data.images import ImageSet, opened, read_image
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError, UnreadableImage
from graft.system.cpu import available_cores

ON_ERROR = ("raise", "skip")

MOST = 100_000
"""Of more files, so many at equal distances are looked at: the beginning of a run must not take minutes. By number and
not by time, so that the same images are left out on every machine."""

CHUNK = 256
LISTED = 20
"""So many files are named in an error."""

Faults = dict[int, UnreadableImage]


def refuse_or_leave_out(splits: Splits, on_error: str, done: Callable[[int], object] = lambda count: None) -> Splits:
    """`splits` without the images that cannot be read. The others stay in the part that they were drawn for.

    Args:
        splits: the images, divided.
        on_error: "raise" refuses a set with such images, "skip" leaves them out and says so in `left_out` and `notes`.
        done: called with how many more files were looked at, for a progress bar.

    Raises:
        DataError: there are some and `on_error` is "raise", or without them a part, or a class to train on, is empty.
        ConfigError: `on_error` is neither.
    """
    if on_error not in ON_ERROR:
        raise ConfigError(f"data.on_error={on_error}: there are {' and '.join(ON_ERROR)}.")
    parts = {id(part): part for part in splits.parts().values()}
    step = -(-sum(map(len, parts.values())) // MOST)
    faults = {key: scan(part, step or 1, done) for key, part in parts.items()}
    bad = [(parts[key].names[index], fault) for key, found in faults.items() for index, fault in found.items()]
    if not bad:
        return splits
    if on_error == "raise":
        raise DataError(_refusal(splits, bad))
    kept = {key: part.select(np.delete(np.arange(len(part)), list(faults[key]))) for key, part in parts.items()}
    train, val, test = (kept[id(part)] for part in splits.parts().values())
    names = ", ".join(name for name, _ in bad[:LISTED]) + (", …" if len(bad) > LISTED else "")
    note = f"{_images(len(bad))} left out, unreadable (data.on_error=skip): {names}"
    left_out = tuple((name, f"{fault.kind}: {fault.reason}") for name, fault in bad)
    return _whole(replace(splits, train=train, val=val, test=test, notes=(*splits.notes, note), left_out=left_out))


def _refusal(splits: Splits, bad: Sequence[tuple[str, UnreadableImage]]) -> str:
    lines = [f"  {name}  ({fault.kind}: {fault.reason})" for name, fault in bad[:LISTED]]
    more = len(bad) - len(lines)
    return "\n".join(
        [
            f"data.root={splits.root}: {_images(len(bad))} cannot be read:",
            *lines,
            *([f"  and {more:,} more; graft inspect lists all"] if more else []),
            "Remove or replace them, or set data.on_error=skip to leave them out.",
        ]
    )


def _whole(splits: Splits) -> Splits:
    """`splits` as they are, unless a part or a class to train on has become empty."""
    for name, part in splits.parts().items():
        if not len(part):
            raise DataError(f"data.root={splits.root}: none of the {name} images can be read.")
    counts = splits.counts()["train"]
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise DataError(
            f'data.root={splits.root}: none of the training images of class "{empty[0]}" can be read.\n'
            "Replace them, or remove the class."
        )
    return splits


def scan(images: ImageSet, step: int = 1, done: Callable[[int], object] = lambda count: None) -> Faults:
    """The files among every `step`-th that cannot be read, by index.

    Args:
        images: the pictures; those in memory are sound.
        step: 1 looks at all of them.
        done: called with how many more were looked at.
    """
    paths = images.paths
    if paths is None:
        return {}
    chosen = range(0, len(paths), step)

    def look(start: int) -> list[tuple[int, UnreadableImage]]:
        seen = ((index, quick_check(paths[index])) for index in chosen[start : start + CHUNK])
        return [(index, fault) for index, fault in seen if fault is not None]

    faults: Faults = {}
    with ThreadPoolExecutor(min(32, 4 * available_cores()), "scan") as pool:  # they wait for the disk
        for found in pool.map(look, range(0, len(chosen), CHUNK)):
            faults.update(found)
            done(CHUNK * step)
    return faults


def quick_check(path: Path) -> UnreadableImage | None:
    """What is wrong with a file as far as its header and its end tell; None where nothing seems to be."""
    try:
        with opened(path) as image:
            whole = _seems_whole(image)
        if not whole:
            read_image(path)
    except UnreadableImage as error:
        return UnreadableImage(error.path, error.kind, error.reason)
    return None


def _seems_whole(image: Image.Image) -> bool:
    file = getattr(image, "fp", None)
    if file is None:  # Pillow has read all there is
        return False
    size = os.fstat(file.fileno()).st_size
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
    tiles = getattr(image, "tile", None)  # BMP, PPM and what else is not compressed
    return size >= (tiles[0].offset if tiles else 0) + image.width * image.height * len(image.getbands())


_STRIPS, _TILES = (273, 279), (324, 325)
"""Where the parts of a TIFF begin, and how long they are: tags of the offsets, of the lengths in bytes."""


def _end_of_tiff(image: TiffImagePlugin.TiffImageFile) -> int:
    """Where its last part ends, in bytes."""
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
