"""Where encoded images are: in files of their own, or in an archive, such as shards or the tables of a library."""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.contents import IDENTITY, ROW, Rows, contents, identities, identity_of, row_of
from graft.data.packed import joined, selected


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


ImageFile = Path | StoredImage
"""Where the encoded bytes of an image are."""


class ImageFiles(ABC):
    """The encoded images of a set, in its order."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> ImageFile: ...

    def __iter__(self) -> Iterator[ImageFile]:
        return (self[index] for index in range(len(self)))

    @abstractmethod
    def select(self, indices: npt.NDArray[np.int64]) -> "ImageFiles":
        """The images at `indices`, in that order."""

    @abstractmethod
    def join(self, other: "ImageFiles") -> "ImageFiles":
        """These images followed by others of the same kind.

        Raises:
            ValueError: some are in files and some in an archive, or in two archives.
        """

    @abstractmethod
    def size(self, index: int) -> int:
        """Length of the file of an image in bytes.

        Raises:
            OSError: it is missing.
        """

    @abstractmethod
    def contents(self) -> Rows:
        """Size, modification time and hash of each file, see `graft.data.contents.contents`."""

    @abstractmethod
    def identities(self) -> npt.NDArray[np.bytes_]:
        """Hash of the whole content of each file, see `graft.data.contents.identities`."""

    @property
    def files(self) -> Sequence[Path]:
        """Paths of the images that are files of their own."""
        return ()

    def blocks(self) -> Blocks | None:
        """The blocks of images that are cheap to read together in training; None: any order is as cheap."""
        return None

    def reading_ahead(self, indices: Sequence[int]) -> AbstractContextManager[None]:
        """Context in which this thread reads the images at `indices` soon; waits of several may overlap."""
        return nullcontext()

    def for_training(self) -> "ImageFiles":
        """The images as they are read in the order of their blocks."""
        return self


class FilesOnDisk(ImageFiles):
    """Images that are files of their own.

    Args:
        files: their paths.
    """

    files: Sequence[Path] = ()

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._contents: Rows | None = None
        self._identities: npt.NDArray[np.bytes_] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Path:
        return self.files[index]

    def __iter__(self) -> Iterator[Path]:
        return iter(self.files)

    def __eq__(self, other: object) -> bool:
        return self.files == other.files if isinstance(other, FilesOnDisk) else self.files == other

    __hash__ = None  # type: ignore[assignment]

    def select(self, indices: npt.NDArray[np.int64]) -> "FilesOnDisk":
        return FilesOnDisk(selected(self.files, indices))

    def join(self, other: ImageFiles) -> "FilesOnDisk":
        if not isinstance(other, FilesOnDisk):
            raise ValueError("images in files and in an archive cannot be joined")
        return FilesOnDisk(joined(self.files, other.files))

    def size(self, index: int) -> int:
        return os.stat(self.files[index]).st_size

    def contents(self) -> Rows:
        """Files are read again only if their size or modification time has changed."""
        self._contents = contents(self.files, self._contents)
        return self._contents

    def identities(self) -> npt.NDArray[np.bytes_]:
        """Files are read once for this object."""
        if self._identities is None:
            self._identities = identities(self.files)
        return self._identities


class StoredImages(ImageFiles):
    """Images of one archive.

    Args:
        archive: the archive.
        numbers: of the images in it, int64 [N].
    """

    def __init__(self, archive: Archive, numbers: npt.NDArray[np.int64]) -> None:
        self.archive, self.numbers = archive, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> StoredImage:
        return StoredImage(self.archive, int(self.numbers[index]))

    def select(self, indices: npt.NDArray[np.int64]) -> "StoredImages":
        return StoredImages(self.archive, self.numbers[indices])

    def join(self, other: ImageFiles) -> "StoredImages":
        if not isinstance(other, StoredImages) or self.archive is not other.archive:
            raise ValueError("images in an archive can be joined with others of it only")
        return StoredImages(self.archive, np.concatenate([self.numbers, other.numbers]))

    def size(self, index: int) -> int:
        return self.archive.size(int(self.numbers[index]))

    def contents(self) -> Rows:
        return self.archive.contents(self.numbers)

    def identities(self) -> npt.NDArray[np.bytes_]:
        return self.archive.identities(self.numbers)

    def blocks(self) -> Blocks | None:
        return self.archive.blocks(self.numbers)

    def reading_ahead(self, indices: Sequence[int]) -> AbstractContextManager[None]:
        return self.archive.reading_ahead(self.numbers[list(indices)].tolist())

    def for_training(self) -> "StoredImages":
        return StoredImages(self.archive.for_training(), self.numbers)
