"""Pictures with labels, and the one way from any kind of picture to RGB."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from graft.data.packed import Packed
from graft.errors import UnreadableImage

T = TypeVar("T")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""What counts as an image: the endings torchvision's ImageFolder takes, in any case."""

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pillow opens no picture of more (178,956,970): one needs 0.5 GB, and a file of some bytes can ask for any size."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # at half of that; the limit is enough
warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # damaged EXIF data: the picture is read all the same

_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation but the upright one."""

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"RIFF", b"GIF8", b"P5", b"P6")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as upright 8-bit RGB.

    EXIF rotation is applied; transparency lies over white; 16-bit grey is scaled to 8 bits (65535 becomes
    255); grey of floats counts as [0, 1] when nothing exceeds 1, else as [0, 255]; of an animation the first
    frame is taken.
    """
    image.load()  # before its file is closed
    turn = _UPRIGHT.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
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
        return int(image.getexif().get(_ORIENTATION, 1))
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
    (see `read_image`); for whatever is raised within, UnreadableImage."""
    try:
        with Image.open(path) as image:
            if least:
                image.draft(None, (least, least))
            yield image
    except Exception as error:  # of a damaged file Pillow raises anything
        kind, reason = _what_is_wrong(path, error)
        raise UnreadableImage(path, kind, reason) from error


def _what_is_wrong(path: Path, error: Exception) -> tuple[str, str]:
    """(kind, reason) as in UnreadableImage."""
    if isinstance(error, FileNotFoundError):
        return "missing", "a link that leads nowhere" if path.is_symlink() else "no such file"
    if isinstance(error, PermissionError):
        return "refused", "no permission to read it"
    if isinstance(error, Image.DecompressionBombError):
        return "too large", f"more than {MOST_PIXELS:,} pixels"
    words = " ".join(str(error).split())
    try:
        with path.open("rb") as file:
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


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes in a file and its time of change in nanoseconds; zeros where there is none any more."""
    try:
        state = path.stat()
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


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
        """SHA-256 (hex) over names and contents: pixels, or the sizes and times of change of files."""
        digest = hashlib.sha256()
        for index, name in enumerate(self.names):
            state = None if self.paths is None else _size_and_time(self.paths[index])
            digest.update(f"{name}\0{state}\n".encode())
        if self.pixels is not None:
            digest.update(f"{self.pixels.shape}".encode())
            digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def counts(self, num_classes: int) -> list[int]:
        """How many pictures each of the `num_classes` classes has."""
        return np.bincount(self.labels, minlength=num_classes).tolist()


def _selected(values: Sequence[T], indices: npt.NDArray[np.int64]) -> Sequence[T]:
    return values.select(indices) if isinstance(values, Packed) else [values[index] for index in indices]


def _joined(one: Sequence[T], other: Sequence[T]) -> Sequence[T]:
    return Packed.joined([one, other]) if isinstance(one, Packed) and isinstance(other, Packed) else [*one, *other]
