"""Reads image files of every kind, and converts them to RGB or to another format of a run."""

import contextlib
import errno
import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from graft.data import bands
from graft.data.bands import MAX_PIXELS, Bands, Levels, NotInFormat
from graft.data.image_format import RGB, ImageFormat
from graft.data.stored import ImageFile, StoredImage
from graft.errors import GraftError, UnreadableImage
from graft.system.files import NotARegularFile, open_regular

ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (),  # no file extension is accepted for it, but some downloads name GIFs .jpg
    **({"AVIF": (".avif",)} if features.check("avif") else {}),
}
"""Format that is read, by Pillow's name -> endings of its files."""

EXTENSIONS = tuple(ending for endings in ENDINGS.values() for ending in endings)
"""Endings of image files that are read, in upper or lower case."""

OTHER_IMAGES = (
    *(".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
"""Endings of image files that are not read, unless they are in EXTENSIONS too."""

FORMATS = tuple(ENDINGS)
"""The only formats that Pillow may try, regardless of a file's ending: for others it starts programs (Ghostscript for
EPS) or has parsers that are not needed here."""

BYTES_PER_PIXEL = 12
"""Largest size of a pixel in a file: three uncompressed floats."""
MAX_EXTRA_BYTES = 1 << 28
"""Bytes that a file may have in addition to its pixels: metadata, a depth map, the video of a motion photo. Without a
limit, a header followed by gigabytes of zeros (a sparse file) would be read to its end."""
MIN_READ = 1 << 8
"""Bytes that each read counts as at min_side, because Pillow searches for a JPEG's header byte by byte."""

_SEQUENTIAL = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats that Pillow reads from beginning to end; of other formats it reads the parts that the header lists."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # it warns at half of MAX_PIXELS
warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # damaged EXIF data do not matter

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa")

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"GIF8", b"P5", b"P6")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to upright 8-bit RGB.

    EXIF rotation is applied; transparent images are put on white; 16-bit grey is scaled to 8 bits (65535 becomes 255);
    floating-point grey is in [0, 1] if no value exceeds 1, else in [0, 255]; only the first frame of an animation is
    used.
    """
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # reads the pixels before the file is closed
    with contextlib.suppress(Exception):  # Pillow raises any error for damaged EXIF data
        return ImageOps.exif_transpose(image)
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0
    else:  # "I;16" has 16 bits; of the 32 of "I" files use 8 or 16
        scale = 255 / 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 1.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


_BANDS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "RGBX": 4}
"""Pillow's modes whose bands are kept as they are -> their number; of "I" and "F" it is 1, others become RGB."""

_GREY = ("1", "L", "LA", "La", "F")
"""Pillow's modes without colour, besides those of integers ("I", "I;16", …)."""


def to_bands(image: Image.Image, wanted: ImageFormat) -> Bands:
    """The upright bands of a PIL image; one channel is grey, colours by their luminance (ITU-R 601), on white.

    Raises:
        NotInFormat: it has other bands than those of the format, or Pillow reads 8 of its 16 bits only.
    """
    require_whole_bits(image)
    from_grey_file = image.format in ("PNG", "PPM")  # whose "I" is 16 bits, scaled to the full range
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        full = 65535.0 if image.mode.startswith("I;16") or (image.mode == "I" and from_grey_file) else None
        return Bands.of(values[..., None], wanted, full)
    if wanted.channels == 1 and wanted.bands is None:
        return Bands.of(np.asarray(to_rgb(image).convert("L"))[..., None], wanted)
    if image.mode not in _BANDS:
        image = to_rgb(image)
    values = np.asarray(image)
    return Bands.of(values if values.ndim == 3 else values[..., None], wanted)


def require_whole_bits(image: Image.Image) -> None:
    """Refuse an opened PNG of 16-bit colours, of which Pillow drops the lower 8 bits.

    Raises:
        NotInFormat: it is one.
    """
    tiles = getattr(image, "tile", None) or [()]
    if image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and ";16" in str(tiles[0]):
        raise NotInFormat("refused", "PNG of 16-bit colours, of which 8 bits would be read; convert it to TIFF or .npy")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if there is none or the EXIF data are damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises any error for damaged EXIF data
        return 1


def read_image(path: ImageFile, min_side: int = 0) -> Image.Image:
    """Decode an image file to upright RGB.

    Args:
        path: the file.
        min_side: a JPEG may be decoded at 1/8, 1/4 or 1/2 of its size, which is faster, as long as both sides keep this
            number of pixels; 0: always decode at full size.

    Raises:
        UnreadableImage: the file is missing, damaged or not an image; names it.
    """
    with opened(path, min_side) as image:
        return to_rgb(image)


def read_bands(path: ImageFile, wanted: ImageFormat, min_side: int = 0) -> Bands:
    """Read the bands of an image file that are the channels of a format, upright, before they are scaled.

    Args:
        path: the file: an array (.npy), a TIFF file, or any picture.
        wanted: the format, not 8-bit RGB.
        min_side: as in `read_image`.

    Raises:
        UnreadableImage: as `read_image`; or the file has other bands or values than those of the format.
    """
    with explained(path):
        if (read := _reader(path, wanted)) is not None:
            with _open(path) as file:
                return Bands.of(read[1](file, wanted), wanted)
        with opened(path, min_side) as image:
            return to_bands(image, wanted)


def load_file(path: ImageFile, image_format: ImageFormat = RGB, min_side: int = 0) -> Image.Image | Levels:
    """The image in a file, upright: a PIL image in RGB, else the levels [H, W, C] of the format.

    Raises:
        UnreadableImage: as `read_image`; or the file has other bands or values than those of the format.
    """
    if image_format.is_rgb:
        return read_image(path, min_side)
    found = read_bands(path, image_format, min_side)
    with explained(path):
        return found.scaled(image_format)


def load_picture(image: Image.Image | npt.NDArray[Any], image_format: ImageFormat, name: str) -> Image.Image | Levels:
    """An image in memory, a PIL image or an array [H, W, C], as `load_file` returns that of a file.

    Raises:
        UnreadableImage: it has other bands or values than those of the format; names `name`.
    """
    if image_format.is_rgb:
        return to_rgb(image if isinstance(image, Image.Image) else Image.fromarray(image))
    with explained(name):
        found = to_bands(image, image_format) if isinstance(image, Image.Image) else Bands.of(image, image_format)
        return found.scaled(image_format)


def size_of(path: ImageFile, wanted: ImageFormat = RGB, min_side: int = 0) -> bands.Size:
    """Size at which a file is decoded in a format, from its header.

    Raises:
        UnreadableImage: the header is damaged, or it shows other bands than those of the format.
    """
    with explained(path):
        if not wanted.is_rgb and (read := _reader(path, wanted)) is not None:
            with _open(path) as file:
                size = read[0](file, _length(path, file), wanted)
            bands.require_bands(size.bands, wanted)
            return size
        with opened(path, min_side) as image:
            found = 1 if image.mode.startswith(("I", "F")) else _BANDS.get(image.mode, 3)
            if not wanted.is_rgb:
                require_whole_bits(image)
                if wanted.bands is not None or wanted.channels != 1:
                    bands.require_bands(found, wanted)
            return bands.Size(image.height, image.width, found)


def is_colour(path: ImageFile) -> bool:
    """Whether a picture has colours, by its header; False for arrays, and for TIFF files that Pillow cannot read."""
    with contextlib.suppress(UnreadableImage), opened(path) as image:
        return not (image.mode in _GREY or image.mode.startswith("I"))
    return False


def is_picture(path: ImageFile, wanted: ImageFormat) -> bool:
    """Whether Pillow reads a file; not an array, and not a TIFF file of several bands."""
    return _reader(path, wanted) is None


def _reader(path: ImageFile, wanted: ImageFormat) -> "tuple[Callable[..., bands.Size], Callable[..., Any]] | None":
    """The functions that read size and bands of an array or a TIFF file; None for what Pillow reads.

    Grey TIFF files are Pillow's, unless it does not know their pixels.
    """
    with _open(path) as file:
        signature = file.read(8)
    if bands.is_array(signature):
        return bands.size_of_array, bands.read_array
    if not bands.is_tiff(signature):
        return None
    if wanted.channels == 1 and wanted.bands is None:
        with contextlib.suppress(UnreadableImage), opened(path):
            return None
    return bands.size_of_tiff, bands.read_tiff


@contextmanager
def explained(path: ImageFile | str) -> Iterator[None]:
    """Context in which any exception becomes an UnreadableImage."""
    try:
        yield
    except GraftError:
        raise
    except NotInFormat as error:
        raise UnreadableImage(_shown(path), error.kind, str(error)) from error
    except Exception as error:  # tifffile and Pillow raise any error for damaged files
        kind, reason = ("damaged", str(error)) if isinstance(path, str) else _diagnose(path, error)
        raise UnreadableImage(_shown(path), kind, reason) from error


def _shown(path: ImageFile | str) -> Path | str:
    return path if isinstance(path, Path) else str(path)


def _length(path: ImageFile, file: io.BufferedReader) -> int:
    return path.size if isinstance(path, StoredImage) else os.fstat(file.fileno()).st_size


@contextmanager
def opened(path: ImageFile, min_side: int = 0) -> Iterator[Image.Image]:
    """Context with the file opened by Pillow: only the header is read, and any exception becomes UnreadableImage.

    Only regular files are opened, and only FORMATS are tried.

    Args:
        path: the file.
        min_side: as in `read_image`; the image has the size at which it will be decoded.
    """
    try:
        with _Bounded(_open(path)) as file, Image.open(file, formats=FORMATS) as image:
            file.remaining = None
            _require_plausible_size(image, _length(path, file))
            if min_side:
                image.draft(None, (min_side, min_side))
            yield image
    except (GraftError, NotInFormat):  # of an archive, of what is done with the image
        raise
    except Exception as error:  # Pillow raises any error for damaged files
        kind, reason = _diagnose(path, error)
        raise UnreadableImage(_shown(path), kind, reason) from error


def _open(path: ImageFile) -> io.BufferedReader:
    return path.open() if isinstance(path, StoredImage) else open_regular(path)


class _TooLarge(Exception):
    """The file is too large for the size of its image."""


class _Bounded(io.BufferedReader):
    """A file of which at most `remaining` more bytes may be read; None: no limit."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file.detach())
        self.remaining: int | None = MAX_EXTRA_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.remaining is None:
            return super().read(size)
        content = super().read(self.remaining + 1 if size is None or size < 0 else min(size, self.remaining + 1))
        self.remaining -= max(len(content), MIN_READ)
        if self.remaining < 0:
            raise _TooLarge(
                f"its header is larger than {MAX_EXTRA_BYTES >> 20} MB or {MAX_EXTRA_BYTES // MIN_READ:,} reads"
            )
        return content


def _require_plausible_size(image: Image.Image, size: int) -> None:
    most = BYTES_PER_PIXEL * image.width * image.height + MAX_EXTRA_BYTES
    if image.format in _SEQUENTIAL and size > most:
        raise _TooLarge(f"{size:,} bytes for {image.width} x {image.height} pixels; the limit is {most:,}")


def _diagnose(path: ImageFile, error: Exception) -> tuple[str, str]:
    """(kind, reason) as in UnreadableImage."""
    if isinstance(error, FileNotFoundError):
        link = isinstance(path, Path) and path.is_symlink()
        return "missing", "a broken link" if link else "no such file"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "missing", "a link to itself"
    if isinstance(error, PermissionError):
        return "refused", "no permission to read it"
    if isinstance(error, NotARegularFile):
        return "not a regular file", error.kind
    if isinstance(error, _TooLarge):
        return "too large", str(error)
    if isinstance(error, Image.DecompressionBombError):
        return "too large", f"more than {MAX_PIXELS:,} pixels"
    reason = " ".join(str(error).split())
    try:
        with _open(path) as file:
            signature = file.read(16)
    except OSError:
        return "refused", reason
    if not signature:
        return "empty", "0 bytes"
    if isinstance(error, UnidentifiedImageError) and not signature.startswith(_SIGNATURES):
        return "no image", f"it begins with {signature!r}"
    if isinstance(error, UnidentifiedImageError):
        return "damaged", "damaged header"
    return "truncated" if "truncated" in reason.lower() else "damaged", reason
