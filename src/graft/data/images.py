"""Pictures with labels, and the one way from any kind of picture to RGB."""

import contextlib
import errno
import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from graft.data.contents import contents
from graft.data.packed import Packed
from graft.errors import UnreadableImage
from graft.system.files import NotARegularFile, open_regular

T = TypeVar("T")

ENDINGS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (),  # not looked for, but downloads call them .jpg
}
"""Pillow's name of each format that is read, and the endings of its files."""

EXTENSIONS = tuple(ending for endings in ENDINGS.values() for ending in endings)
"""What counts as an image: the endings torchvision's ImageFolder takes, in any case."""

FORMATS = tuple(ENDINGS)
"""The only formats that Pillow may try, whatever a file is called: for others it starts programs (Ghostscript for EPS)
or has parsers that nobody needs here."""

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pillow opens no picture of more (178,956,970): one needs 0.5 GB, and a file of some bytes can ask for any size."""

BYTES_PER_PIXEL = 12
"""The most that a pixel takes in a file: three floats, not compressed."""
MOST_BESIDES = 1 << 28
"""Bytes that a file may have besides its pixels: metadata, a depth map, the video of a motion photo. Without a limit, a
header followed by gigabytes of nothing (a sparse file) would be read to its end."""
LEAST_READ = 1 << 8
"""Bytes that a read counts as at least: Pillow looks for a JPEG's header byte by byte."""

_SEQUENTIAL = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats that are read from the beginning to the end; of the others Pillow reads what the header names."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # at half of that; the limit is enough
warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # damaged EXIF data: the picture is read all the same

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa")

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"GIF8", b"P5", b"P6")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB.

    EXIF rotation is applied; transparency lies over white; 16-bit grey is scaled to 8 bits (65535 becomes
    255); grey of floats counts as [0, 1] when nothing exceeds 1, else as [0, 255]; of an animation the first
    frame is taken.
    """
    image.load()  # before its file is closed
    with contextlib.suppress(Exception):  # of damaged EXIF data Pillow raises anything; the pixels may be sound
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0
    else:  # "I;16" is 16 bits by name; "I" holds 32, of which files use 16 when they use more than 8
        scale = 255 / 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 1.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, also where the EXIF data are damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever Pillow raises: the pixels may be sound all the same
        return 1


def read_image(path: Path, least: int = 0) -> Image.Image:
    """The picture in `path` as upright RGB, fully decoded.

    Args:
        path: the file.
        least: a JPEG is decoded at an eighth, a quarter or a half of its size, in a fraction of the time, where both
            sides keep at least so many pixels; 0: always at its own size.

    Raises:
        UnreadableImage: the file is missing, damaged or no image; names it.
    """
    with opened(path, least) as image:
        return to_rgb(image)


@contextmanager
def opened(path: Path, least: int = 0) -> Iterator[Image.Image]:
    """`path` as Pillow opens it, of which only the header is read, and of the size that `least` lets it be decoded at
    (see `read_image`); any exception inside becomes UnreadableImage.

    Nothing but a regular file is opened, and nothing but FORMATS is tried.
    """
    try:
        with _Bounded(open_regular(path)) as file, Image.open(file, formats=FORMATS) as image:
            file.left = None
            _require_plausible_size(image, os.fstat(file.fileno()).st_size)
            if least:
                image.draft(None, (least, least))
            yield image
    except Exception as error:  # of a damaged file Pillow raises anything
        kind, reason = _what_is_wrong(path, error)
        raise UnreadableImage(path, kind, reason) from error


class _TooLarge(Exception):
    """A file that is larger than its picture can explain."""


class _Bounded(io.BufferedReader):
    """A file of which at most `left` bytes may be read; None: all."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file.detach())
        self.left: int | None = MOST_BESIDES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.left is None:
            return super().read(size)
        content = super().read(self.left + 1 if size is None or size < 0 else min(size, self.left + 1))
        self.left -= max(len(content), LEAST_READ)
        if self.left < 0:
            raise _TooLarge(
                f"its header exceeds the limit of {MOST_BESIDES >> 20} MB or {MOST_BESIDES // LEAST_READ:,} reads"
            )
        return content


def _require_plausible_size(image: Image.Image, size: int) -> None:
    most = BYTES_PER_PIXEL * image.width * image.height + MOST_BESIDES
    if image.format in _SEQUENTIAL and size > most:
        raise _TooLarge(f"{size:,} bytes for {image.width} x {image.height} pixels, where {most:,} are the limit")


def _what_is_wrong(path: Path, error: Exception) -> tuple[str, str]:
    """(kind, reason) as in UnreadableImage."""
    if isinstance(error, FileNotFoundError):
        return "missing", "a link that leads nowhere" if path.is_symlink() else "no such file"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "missing", "a link that leads to itself"
    if isinstance(error, PermissionError):
        return "refused", "no permission to read it"
    if isinstance(error, NotARegularFile):
        return "not a regular file", error.kind
    if isinstance(error, _TooLarge):
        return "too large", str(error)
    if isinstance(error, Image.DecompressionBombError):
        return "too large", f"more than {MOST_PIXELS:,} pixels"
    words = " ".join(str(error).split())
    try:
        with open_regular(path) as file:
            beginning = file.read(16)
    except OSError:
        return "refused", words
    if not beginning:
        return "empty", "0 bytes"
    if isinstance(error, UnidentifiedImageError) and not beginning.startswith(_BEGINNINGS):
        return "no image", f"it begins with {beginning!r}"
    if isinstance(error, UnidentifiedImageError):
        return "damaged", "damaged header"
    return "truncated" if "truncated" in words.lower() else "damaged", words


@dataclass(frozen=True)
class ImageSet:
    """Labelled pictures, either in files or in memory.

    Attributes:
        names: what each picture is called, N of them; for files the POSIX path below the data root.
        labels: class index of each picture, int64 [N].
        paths: the files, N of them; None when the pictures are in memory.
        pixels: uint8 [N, H, W, 3]; None when the pictures are in files.
        least: how far the decoding of a JPEG may reduce it, as in `read_image`.
    """

    names: Sequence[str]
    labels: npt.NDArray[np.int64]
    paths: Sequence[Path] | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    least: int = 0

    def __post_init__(self) -> None:
        if (self.paths is None) == (self.pixels is None):
            raise ValueError("an ImageSet has either paths or pixels")
        content = self.paths if self.paths is not None else self.pixels
        if content is None or not len(self.names) == len(self.labels) == len(content):
            raise ValueError("an ImageSet's names, labels and pictures differ in number")

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Picture `index` as upright RGB; raises UnreadableImage naming the file."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])
        assert self.paths is not None
        return read_image(self.paths[index], self.least)

    def spread(self, count: int) -> npt.NDArray[np.int64]:
        """Indices of `count` pictures, evenly over the set; of all where there are no more."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "ImageSet":
        """The pictures at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageSet(
            names=_selected(self.names, chosen),
            labels=self.labels[chosen],
            paths=None if self.paths is None else _selected(self.paths, chosen),
            pixels=None if self.pixels is None else self.pixels[chosen],
            least=self.least,
        )

    def join(self, other: "ImageSet") -> "ImageSet":
        """These pictures and then those of `other`, which lie in the same place: both in files or both in memory."""
        return ImageSet(
            names=_joined(self.names, other.names),
            labels=np.concatenate([self.labels, other.labels]),
            paths=None if self.paths is None else _joined(self.paths, other.paths or ()),
            pixels=None if self.pixels is None else np.concatenate([self.pixels, other.pixels]),
            least=self.least,
        )

    def content(self, index: int) -> bytes:
        """What is cheap to know of a picture's content: its pixels in memory, or the size of its file."""
        if self.pixels is not None:
            return self.pixels[index].tobytes()
        assert self.paths is not None
        try:
            return str(os.stat(self.paths[index]).st_size).encode()
        except OSError:
            return b"missing"

    def fingerprint(self) -> str:
        """SHA-256 (hex) over names and contents: pixels, or sizes, times of change and hashes of files."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        self.hash_contents(digest, times=True)
        return digest.hexdigest()

    def hash_contents(self, digest: "hashlib._Hash", *, times: bool) -> None:
        """Put the pixels, or what tells the files apart, into `digest`; their times of change too if `times` is set.

        Files are read once (see `graft.data.contents`), and again only if their size or time of change is another.
        """
        if self.pixels is not None:
            digest.update(f"{self.pixels.shape}".encode())
            digest.update(np.ascontiguousarray(self.pixels).data)
        if self.paths is not None:
            rows = contents(self.paths, self.__dict__.get("_contents"))
            object.__setattr__(self, "_contents", rows)
            for field in ("size", "digest", *(("changed",) if times else ())):
                digest.update(np.ascontiguousarray(rows[field]).tobytes())

    def counts(self, num_classes: int) -> list[int]:
        """How many pictures each of the `num_classes` classes has."""
        return np.bincount(self.labels, minlength=num_classes).tolist()


def _selected(values: Sequence[T], indices: npt.NDArray[np.int64]) -> Sequence[T]:
    return values.select(indices) if isinstance(values, Packed) else [values[index] for index in indices]


def _joined(one: Sequence[T], other: Sequence[T]) -> Sequence[T]:
    return Packed.joined([one, other]) if isinstance(one, Packed) and isinstance(other, Packed) else [*one, *other]
