"""Arrays of any number of bands, from .npy files, TIFF files and Pillow, in the format of a run.

A file has its bands in the first or the last axis. Numbers are scaled once, here: after that an image has the integer
levels of its `ImageFormat`.
"""

import io
import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.image_format import MOST_CHANNELS, ImageFormat
from graft.errors import pip_install

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

NUMPY_SIGNATURE = b"\x93NUMPY"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF, little- and big-endian."""

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pixels of the largest RGB image (178,956,970, by Pillow): it needs 0.5 GB, and a tiny file can claim any size."""

MAX_HEADER = 1 << 16
"""Largest header of a .npy file, in bytes."""

Levels = npt.NDArray[np.unsignedinteger[Any]]
"""An image [H, W, C] in the levels of an ImageFormat, uint8 or uint16."""


class NotInFormat(Exception):
    """A file has other bands or values than those of the format; `kind` and the message as in `UnreadableImage`."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


@dataclass(frozen=True)
class Size:
    """Size of an image, from the header of its file.

    Attributes:
        height, width: in pixels.
        bands: number of bands in the file.
    """

    height: int
    width: int
    bands: int


@dataclass(frozen=True)
class Bands:
    """The bands of a file that a format takes, before they are scaled.

    Attributes:
        values: [H, W, C], of any numeric type.
        full: the value that is the highest level where the format sets none; None: the type has no such value.
    """

    values: npt.NDArray[Any]
    full: float | None

    @classmethod
    def of(cls, values: npt.NDArray[Any], wanted: ImageFormat, full: float | None = None) -> "Bands":
        """The bands of an array [H, W, B] that `wanted` takes.

        Args:
            values: of all bands.
            wanted: which bands, and how many.
            full: as the attribute; None: by the type of the values.

        Raises:
            NotInFormat: other bands than those of the format, or values that are no real numbers.
        """
        require_bands(values.shape[-1], wanted)
        if wanted.bands is not None:
            values = values[..., [band - 1 for band in wanted.bands]]
        if values.dtype.kind not in "buif":
            raise NotInFormat("values", f"its values are of the type {values.dtype}")
        return cls(values, _full(values.dtype) if full is None else full)

    def most(self, wanted: ImageFormat) -> float:
        """The value that becomes the highest level.

        Raises:
            NotInFormat: neither the format nor the type of the values sets one, or floating-point values exceed 1.
        """
        if wanted.max_value is not None:
            return wanted.max_value
        if self.full is None:
            raise NotInFormat(
                "values", f"its values are {self.values.dtype}; set data.max_value to the one that is white"
            )
        if self.values.dtype.kind == "f" and (largest := float(self.values.max(initial=0))) > self.full:
            raise NotInFormat(
                "values",
                f"its values are floats up to {largest:g}, not to 1; set data.max_value to the one that is white",
            )
        return self.full

    def scaled(self, wanted: ImageFormat) -> Levels:
        """The bands as integer levels of the format, rounded; values above the highest level or below 0 are clipped.

        Raises:
            NotInFormat: as `most`, or values that are not finite.
        """
        most, dtype = self.most(wanted), np.uint8 if wanted.bits == 8 else np.uint16
        if most == wanted.levels and self.values.dtype == dtype:
            return np.ascontiguousarray(self.values)
        if self.values.dtype.kind == "f" and not np.isfinite(self.values).all():
            raise NotInFormat("values", "some of its values are NaN or infinite")
        scaled = np.rint(self.values.astype(np.float64) * (wanted.levels / most))
        return np.ascontiguousarray(scaled.clip(0, wanted.levels).astype(dtype))


def _full(dtype: np.dtype[Any]) -> float | None:
    """The largest value of a type; None for those that nobody uses to the full."""
    if dtype.kind in "bf":
        return 1.0
    return float(np.iinfo(dtype).max) if dtype.kind == "u" and dtype.itemsize <= 2 else None


def require_bands(found: int, wanted: ImageFormat) -> None:
    """Refuse a file with another number of bands than the format takes.

    Raises:
        NotInFormat: names both numbers and the way out.
    """
    if wanted.bands is not None:
        if found < max(wanted.bands):
            raise NotInFormat("channels", f"it has {_bands(found)}, and data.bands names band {max(wanted.bands)}")
    elif found != wanted.channels:
        first = ",".join(str(band + 1) for band in range(min(found, wanted.channels)))
        way = f"data.bands=[{first}] chooses" if found > wanted.channels else f"data.channels={found} takes"
        raise NotInFormat("channels", f"it has {_bands(found)}, not data.channels={wanted.channels}; {way} them")


def _bands(count: int) -> str:
    return "1 band" if count == 1 else f"{count} bands"


def is_array(signature: bytes) -> bool:
    """Whether a file that begins so is a .npy array."""
    return signature.startswith(NUMPY_SIGNATURE)


def is_tiff(signature: bytes) -> bool:
    """Whether a file that begins so is a TIFF file."""
    return signature.startswith(TIFF_SIGNATURES)


# -- .npy


def size_of_array(file: io.BufferedReader, length: int, wanted: ImageFormat) -> Size:
    """Size of the image in a .npy file, of which only the header is read.

    Raises:
        NotInFormat: no image, or shorter than its header says.
    """
    file.seek(0)
    shape, _, dtype = _header(file)
    rest = length - file.tell()
    if dtype.hasobject:
        raise NotInFormat("no image", "it contains Python objects")
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if rest < expected:
        raise NotInFormat("truncated", f"{rest:,} bytes of an array of {expected:,}")
    _, size = _axes(shape, "", wanted)
    return size


def read_array(file: io.BufferedReader, wanted: ImageFormat) -> npt.NDArray[Any]:
    """The array [H, W, B] in a .npy file."""
    size_of_array(file, file.seek(0, io.SEEK_END), wanted)  # refuses a header that claims too much
    file.seek(0)
    array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    order, size = _axes(array.shape, "", wanted)
    return _ordered(array, order, size)


def _header(file: io.BufferedReader) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file, max_header_size=MAX_HEADER)


# -- TIFF


def size_of_tiff(file: io.BufferedReader, length: int, wanted: ImageFormat) -> Size:
    """Size of the image in a TIFF file, of which only the header is read.

    Raises:
        NotInFormat: no image, or shorter than its header says.
    """
    with _tiff(file) as opened:
        series = _same_series(opened)
        _require_readable(series, length)
        _, size = _axes(*_layout(series), wanted)
        return size


def _tiff(file: io.BufferedReader) -> "TiffFile":
    from tifffile import TiffFile  # takes a sixth of a second, which only such files should cost

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # of damaged files, which raise or are checked here
    return TiffFile(file)


def _require_readable(series: "list[TiffPageSeries]", length: int) -> None:
    """Refuse a file of this length that ends before its pixels do, which tifffile would read as zeros.

    Raises:
        NotInFormat: it does, or its compression needs a package that is not installed.
    """
    from tifffile import TIFF

    compression = series[0].keyframe.compression
    try:
        TIFF.DECOMPRESSORS[compression]
    except KeyError as error:
        name = getattr(compression, "name", compression)
        raise NotInFormat("refused", f"its compression, {name}, needs imagecodecs: {pip_install('tiff')}") from error
    pages = (page for each in series for page in each.pages if page is not None)  # None: of a contiguous series
    ends = [
        begin + size
        for page in itertools.islice(pages, MOST_CHANNELS)
        for begin, size in zip(page.dataoffsets, page.databytecounts, strict=True)
    ]
    if (end := max(ends, default=0)) > length:
        raise NotInFormat("truncated", f"{length:,} bytes of {end:,}")


def read_tiff(file: io.BufferedReader, wanted: ImageFormat) -> npt.NDArray[Any]:
    """The bands [H, W, B] of a TIFF file: planar, interleaved, or one page per band.

    Raises:
        NotInFormat: its compression needs a package that is not installed.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    with _tiff(file) as opened:
        series = _same_series(opened)
        _require_readable(series, length)
        order, size = _axes(*_layout(series), wanted)
        arrays = [each.asarray(maxworkers=1) for each in series]
    return _ordered(arrays[0] if len(arrays) == 1 else np.stack(arrays), order, size)


def _same_series(file: "TiffFile") -> "list[TiffPageSeries]":
    """The first series of pages, and all others like it if it is a single band; not a thumbnail or a mask."""
    first, *others = list(file.series)
    if len(first.shape) != 2:
        return [first]
    return [first, *(each for each in others if (each.shape, each.dtype) == (first.shape, first.dtype))]


def _layout(series: "list[TiffPageSeries]") -> tuple[tuple[int, ...], str]:
    """(shape, tifffile's letters of the axes where the file says which is which: "YXS", "SYX"; else "")."""
    shape, axes = tuple(series[0].shape), str(series[0].axes)
    if len(series) > 1:
        return (len(series), *shape), "SYX"
    named = axes.count("Y") == axes.count("X") == 1 and ("S" in axes or "C" in axes)
    return shape, axes if named else ""


# -- axes


def _axes(shape: tuple[int, ...], names: str, wanted: ImageFormat) -> tuple[tuple[int, ...], Size]:
    """(the axes of height, width and bands, size); a missing axis of bands is not among them.

    Where the file does not name its axes, the bands are the first or the last of three: the one whose length is the
    number of channels, or else the shorter one.

    Raises:
        NotInFormat: not two or three axes are longer than 1, or there are too many pixels or bands.
    """
    axes = [axis for axis, length in enumerate(shape) if length != 1 or names[axis : axis + 1] in ("Y", "X")]
    if len(axes) < 2:
        axes = list(range(len(shape)))[-3:] if len(shape) >= 2 else []
    if len(axes) not in (2, 3) or 0 in shape:
        raise NotInFormat("no image", f"an array of the shape {list(shape)}")
    if len(axes) == 3:
        if names:
            band = next(axis for axis in axes if names[axis] not in "YX")
        else:
            ends = (axes[-1], axes[0])
            fitting = [axis for axis in ends if wanted.bands is None and shape[axis] == wanted.channels]
            band = fitting[0] if fitting else min(ends, key=lambda axis: shape[axis])
        axes = [axis for axis in axes if axis != band] + [band]
    size = Size(shape[axes[0]], shape[axes[1]], shape[axes[2]] if len(axes) == 3 else 1)
    if size.bands > MOST_CHANNELS:
        raise NotInFormat(
            "no image", f"an array of the shape {list(shape)}; an image has at most {MOST_CHANNELS} bands"
        )
    if size.height * size.width * size.bands > 3 * MAX_PIXELS:
        raise NotInFormat("too large", f"an array of the shape {list(shape)}")
    return tuple(axes), size


def _ordered(array: npt.NDArray[Any], order: tuple[int, ...], size: Size) -> npt.NDArray[Any]:
    rest = [axis for axis in range(array.ndim) if axis not in order]
    return array.transpose(*order, *rest).reshape(size.height, size.width, size.bands)
