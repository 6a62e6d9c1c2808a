"""Labelled images, in files, in an archive or in memory."""

import hashlib
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.bands import Bands, Levels
from graft.data.contents import IDENTITY
from graft.data.image_format import RGB, ImageFormat
from graft.data.labels import Labels, counts_of
from graft.data.packed import Packed, joined, selected
from graft.data.reading import explained, load_file, read_bands, to_bands
from graft.data.stored import Blocks, FilesOnDisk, ImageFiles


@dataclass(frozen=True)
class ImageSet:
    """Labelled images, either in files or in memory.

    Attributes:
        names: of the images, length N; for files the POSIX path relative to the data root.
        labels: class index of each image, int64 [N]; or several labels, int8 [N, C] of zeros and ones.
        paths: of the files (a sequence becomes a `FilesOnDisk`), or the images of an archive; None if the images are in
            memory.
        pixels: uint8 [N, H, W, 3]; None if the images are in files.
        min_side: limit for decoding JPEGs at a reduced size, in pixels, as in `read_image`.
        image_format: what the images are converted to.
    """

    names: Sequence[str]
    labels: Labels
    paths: ImageFiles | Sequence[Path] | None = None
    pixels: npt.NDArray[np.uint8] | None = None
    min_side: int = 0
    image_format: ImageFormat = RGB

    def __post_init__(self) -> None:
        if (self.paths is None) == (self.pixels is None):
            raise ValueError("an ImageSet has either paths or pixels")
        content = self.paths if self.paths is not None else self.pixels
        if content is None or not len(self.names) == len(self.labels) == len(content):
            raise ValueError("an ImageSet's names, labels and images differ in number")
        if self.paths is not None and not isinstance(self.paths, ImageFiles):
            object.__setattr__(self, "paths", FilesOnDisk(self.paths))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> ImageFiles:
        """The files or the archive of images that are not in memory."""
        assert isinstance(self.paths, ImageFiles)
        return self.paths

    def load(self, index: int) -> Image.Image | Levels:
        """Image `index`, upright: a PIL image in RGB, else the levels [H, W, C] of the format.

        Raises:
            UnreadableImage: names the file.
        """
        if self.pixels is not None:
            picture = Image.fromarray(self.pixels[index])
            return picture if self.image_format.is_rgb else self.scaled(index, self.bands(index))
        return load_file(self.stored[index], self.image_format, self.min_side)

    def bands(self, index: int) -> Bands:
        """The channels of image `index` before they are scaled, in a format other than 8-bit RGB; raises as `load`."""
        if self.pixels is not None:
            with explained(self.names[index]):
                return to_bands(Image.fromarray(self.pixels[index]), self.image_format)
        return read_bands(self.stored[index], self.image_format, self.min_side)

    def scaled(self, index: int, found: Bands) -> Levels:
        """The channels of image `index`, as `bands` returns them, in the levels of the format; raises as `load`."""
        with explained(self.names[index] if self.paths is None else self.paths[index]):
            return found.scaled(self.image_format)

    def spread(self, count: int) -> npt.NDArray[np.int64]:
        """Indices of `count` images spread evenly over the set, or of all images if there are fewer."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64)

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "ImageSet":
        """The images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return ImageSet(
            names=selected(self.names, chosen),
            labels=self.labels[chosen],
            paths=None if self.paths is None else self.stored.select(chosen),
            pixels=None if self.pixels is None else self.pixels[chosen],
            min_side=self.min_side,
            image_format=self.image_format,
        )

    def join(self, other: "ImageSet") -> "ImageSet":
        """These images followed by those of `other`; both sets must be in files, or both in memory."""
        return ImageSet(
            names=joined(self.names, other.names),
            labels=np.concatenate([self.labels, other.labels]),
            paths=None if self.paths is None else self.stored.join(other.stored),
            pixels=None if self.pixels is None else np.concatenate([self.pixels, other.pixels]),
            min_side=self.min_side,
            image_format=self.image_format,
        )

    def content(self, index: int) -> bytes:
        """Bytes that identify the content of an image cheaply: its pixels in memory, or the size of its file."""
        if self.pixels is not None:
            return self.pixels[index].tobytes()
        try:
            return str(self.stored.size(index)).encode()
        except OSError:
            return b"missing"

    def fingerprint(self) -> str:
        """SHA-256 (hex) over names and contents: pixels, or sizes, modification times and hashes of files."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        self.hash_contents(digest, times=True)
        return digest.hexdigest()

    def hash_contents(self, digest: "hashlib._Hash", *, times: bool) -> None:
        """Update `digest` with the pixels, or with the sizes and hashes of the files.

        Files are read once (see `graft.data.contents`), and again only if their size or modification time has changed.

        Args:
            digest: of hashlib.
            times: include the modification times of the files.
        """
        if self.pixels is not None:
            digest.update(f"{self.pixels.shape}".encode())
            digest.update(np.ascontiguousarray(self.pixels).data)
        if self.paths is not None:
            rows = self.stored.contents()
            for field in ("size", "digest", *(("changed",) if times else ())):
                digest.update(np.ascontiguousarray(rows[field]).tobytes())

    def samples(self) -> npt.NDArray[np.bytes_]:
        """Hash of samples of the content of each image, S24 [N]: equal for copies, and rarely for other images.

        It costs what `fingerprint` does, and once for both.
        """
        if self.pixels is not None:
            return self.identities().astype("S24")
        rows = self.stored.contents()
        sizes, digests = (np.ascontiguousarray(rows[name]).view(np.uint8) for name in ("size", "digest"))
        return np.concatenate([sizes.reshape(-1, 8), digests.reshape(-1, 16)], 1).view("S24").reshape(-1)

    def identities(self) -> npt.NDArray[np.bytes_]:
        """Hash of the content of each image, S16 [N]: equal for copies, regardless of their names; null if unreadable.

        Files are read completely, once.
        """
        if self.pixels is not None:
            shape = str(self.pixels.shape[1:]).encode()
            found = [hashlib.sha256(shape + image.tobytes()).digest()[:16] for image in self.pixels]
            return np.array(found, IDENTITY)
        return self.stored.identities()

    @property
    def files(self) -> Sequence[Path]:
        """Paths of the images that are files of their own."""
        return () if self.paths is None else self.stored.files

    def blocks(self) -> Blocks | None:
        """The blocks of images that are cheap to read together in training; None: any order is as cheap."""
        return None if self.paths is None else self.stored.blocks()

    def reading_ahead(self, indices: Sequence[int]) -> AbstractContextManager[None]:
        """Context in which the images at `indices` are read soon; waits for a network overlap."""
        return nullcontext() if self.paths is None else self.stored.reading_ahead(indices)

    def for_training(self, min_side: int) -> "ImageSet":
        """The images as training reads them: in the order of their blocks, JPEGs at a reduced size (`read_image`)."""
        return replace(self, paths=None if self.paths is None else self.stored.for_training(), min_side=min_side)

    def counts(self, num_classes: int) -> list[int]:
        """Number of images of each of the `num_classes` classes."""
        return counts_of(self.labels, num_classes).tolist()


def draw_keys(names: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number in [0, 2**32) for each image, from its name, that determines its augmentation (`graft.data.draws`)."""
    strings = names.strings() if isinstance(names, Packed) else names
    return np.array([zlib.crc32(name.encode("utf-8", "surrogateescape")) for name in strings], dtype=np.int64)
