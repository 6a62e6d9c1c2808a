"""Mean and standard deviation of each channel of the training images, for formats that no pretrained weights define."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.transforms import eval_transform
from graft.data.unreadable import UnreadableImages
from graft.errors import DataError, UnreadableImage, listed
from graft.system.cpu import available_cores

MEASURED = 1000
"""Number of training images, evenly spaced, that are measured."""

LISTED = 5
"""Number of clipped images that a note names."""


@dataclass(frozen=True)
class _Sums:
    """Sums over the pixels of images, as whole numbers, which do not depend on the order of the images.

    Attributes:
        pixels: their number.
        levels, squares: of each channel, of the levels and of their squares.
    """

    pixels: int
    levels: npt.NDArray[np.object_]
    squares: npt.NDArray[np.object_]

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(self.pixels + other.pixels, self.levels + other.levels, self.squares + other.squares)


def with_statistics(
    preprocessing: Preprocessing,
    images: ImageSet,
    unreadable: UnreadableImages | None,
    done: Callable[[], object] = lambda: None,
) -> tuple[Preprocessing, list[str]]:
    """(the preprocessing with the mean and std of training images, notes).

    Up to MEASURED images are resized and cropped as in evaluation; the result is the same with any number of threads. A
    channel that is constant gets the std 1.

    Args:
        preprocessing: in a format other than 8-bit RGB.
        images: of the training split.
        unreadable: records images that cannot be read; None: they are an error.
        done: called after each image, for a progress bar.

    Raises:
        UnreadableImage: an image cannot be read, and `unreadable` is None; names the file.
        DataError: none can be read.
    """
    image_format = preprocessing.image_format
    transform = eval_transform(preprocessing)

    def measure(index: int) -> tuple[_Sums, bool, float, float] | None:
        try:
            bands = images.bands(index)
            levels = images.scaled(index, bands)
        except UnreadableImage as error:
            if unreadable is None:
                raise
            unreadable.note(images.names[index], error)
            return None
        pixels = transform(levels).numpy().reshape(image_format.channels, -1).astype(np.int64)
        sums = _Sums(pixels.shape[1], pixels.sum(1).astype(object), (pixels**2).sum(1).astype(object))
        low, high = float(bands.values.min()), float(bands.values.max())
        return sums, low < 0 or high > bands.most(image_format), low, high

    rows = images.spread(MEASURED).tolist()
    total: _Sums | None = None
    clipped: list[tuple[str, float, float]] = []
    count = 0
    with ThreadPoolExecutor(available_cores(), "measure") as pool:
        for index, found in zip(rows, pool.map(measure, rows), strict=True):
            done()
            if found is None:
                continue
            count += 1
            sums, outside, low, high = found
            total = sums if total is None else total + sums
            if outside:
                clipped.append((images.names[index], low, high))
    if total is None:
        raise DataError(f"none of {len(rows)} training images can be read.")
    highest = image_format.levels
    mean = [int(each) / (total.pixels * highest) for each in total.levels]
    # exact before the division: a difference of floats would lose the digits of a small deviation
    variance = [
        (total.pixels * int(squares) - int(levels) ** 2) / (total.pixels * highest) ** 2
        for levels, squares in zip(total.levels, total.squares, strict=True)
    ]
    std = [value**0.5 if value else 1.0 for value in variance]
    shown = " and std ".join(f"[{', '.join(f'{value:.4g}' for value in values)}]" for values in (mean, std))
    notes = [f"measured on {count:,} training images ({image_format}): mean {shown}"]
    if constant := [str(number) for number, value in enumerate(variance, 1) if not value]:
        notes.append(f"channel {', '.join(constant)} is the same in all pixels of these images, and teaches nothing")
    if clipped:
        names, lows, highs = zip(*clipped, strict=True)
        most = (
            "the value that is white"
            if image_format.max_value is None
            else f"data.max_value={image_format.max_value:g}"
        )
        notes.append(
            f"{len(clipped):,} of these {count:,} images have values below 0 or above {most}, from {min(lows):g} to "
            f"{max(highs):g}, which are clipped: {listed(names, LISTED, counted=False)}"
        )
    return replace(preprocessing, mean=tuple(mean), std=tuple(std)), notes
