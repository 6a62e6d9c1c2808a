"""Encoded images that are not files of their own: in shards, or in the tables of a library."""

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from graft.data.contents import IDENTITY, ROW, Rows, identity_of, row_of


class Archive(ABC):
    """Encoded images by number.

    Attributes:
        faults: number → (kind, reason), as in `UnreadableImage`, of all unreadable images, where they were checked when
            the archive was written; None: unknown.
    """

    faults: Mapping[int, tuple[str, str]] | None = None

    @abstractmethod
    def read(self, number: int) -> bytes:
        """The file of an image.

        Raises:
            UnreadableImage: its bytes are damaged.
            GraftError: the archive cannot be read.
        """

    @abstractmethod
    def describe(self, number: int) -> str:
        """Where an image is, for messages."""

    def size(self, number: int) -> int:
        """Length of the file of an image in bytes."""
        return len(self.read(number))

    def contents(self, numbers: npt.NDArray[np.int64]) -> Rows:
        """What `graft.data.contents.contents` says about the files of these images; their modification time is 0."""
        return np.array([row_of(self.read(number)) for number in numbers.tolist()], ROW)

    def identities(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bytes_]:
        """Hash of the file of each of these images, as `graft.data.contents.identities`."""
        return np.array([identity_of(self.read(number)) for number in numbers.tolist()], IDENTITY)

    def blocks(self, numbers: npt.NDArray[np.int64]) -> "Blocks | None":
        """The blocks in which these images should be read in training; None: in any order."""
        return None

    def for_training(self) -> "Archive":
        """The archive as it reads images in the order of their blocks."""
        return self

    def reading_ahead(self, numbers: Sequence[int]) -> AbstractContextManager[None]:
        """Context in which this thread reads these images soon; waits of several may overlap."""
        return nullcontext()


@dataclass(frozen=True)
class Blocks:
    """Blocks of images that are cheap to read together, such as the shards of a remote data set.

    Attributes:
        of: number of the block of each image, int64 [N].
        window: number of blocks from which images are mixed at any time.
    """

    of: npt.NDArray[np.int64]
    window: int


@dataclass(frozen=True)
class StoredImage:
    """Image `number` of an archive."""

    archive: Archive
    number: int

    def open(self) -> io.BufferedReader:
        """The file of the image, in memory; raises as `Archive.read`."""
        return io.BufferedReader(io.BytesIO(self.archive.read(self.number)))

    @property
    def size(self) -> int:
        """Length of its file in bytes."""
        return self.archive.size(self.number)

    def __str__(self) -> str:
        return self.archive.describe(self.number)


class StoredImages(Sequence[StoredImage]):
    """Images of one archive.

    Args:
        archive: the archive.
        numbers: of the images in it, int64 [N].
    """

    def __init__(self, archive: Archive, numbers: npt.NDArray[np.int64]) -> None:
        self.archive, self.numbers = archive, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> StoredImage: ...

    @overload
    def __getitem__(self, index: slice) -> "StoredImages": ...

    def __getitem__(self, index: int | slice) -> "StoredImage | StoredImages":
        if isinstance(index, slice):
            return StoredImages(self.archive, self.numbers[index])
        return StoredImage(self.archive, int(self.numbers[index]))

    def select(self, indices: npt.NDArray[np.int64]) -> "StoredImages":
        """The images at `indices`, in that order."""
        return StoredImages(self.archive, self.numbers[indices])

    def join(self, other: "StoredImages") -> "StoredImages":
        """These images followed by others of the same archive."""
        if self.archive is not other.archive:
            raise ValueError("images of two archives cannot be joined")
        return StoredImages(self.archive, np.concatenate([self.numbers, other.numbers]))

    def contents(self) -> Rows:
        """See `Archive.contents`."""
        return self.archive.contents(self.numbers)

    def identities(self) -> npt.NDArray[np.bytes_]:
        """See `Archive.identities`."""
        return self.archive.identities(self.numbers)

    def blocks(self) -> Blocks | None:
        """See `Archive.blocks`."""
        return self.archive.blocks(self.numbers)

    def reading_ahead(self, indices: Sequence[int]) -> AbstractContextManager[None]:
        """See `Archive.reading_ahead`."""
        return self.archive.reading_ahead(self.numbers[list(indices)].tolist())

    def for_training(self) -> "StoredImages":
        """The images as they are read in the order of their blocks."""
        return StoredImages(self.archive.for_training(), self.numbers)
