"""Batches of features: outputs of the frozen layers, read from files instead of being computed again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from graft.data.datasets import Batch, FileDataset, Key, collate, epoch_and_indices
from graft.data.labels import PADDING, Labels, padded
from graft.data.resident import DecodedDataset
from graft.errors import GraftError


class FeatureBatch(NamedTuple):
    """Features of images, with their labels and indices.

    Attributes:
        features: the tensors at the cut, each [B, ...].
        labels: as in `Batch`.
        indices: int64 [B], into the data set; -1 for padding.
        cut: name of the part of the network that takes them as input.
    """

    features: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor
    cut: str


@dataclass(frozen=True)
class Layout:
    """How the rows of one tensor at the cut are stored in a file.

    Attributes:
        dtype: of the tensor.
        shape: of one row as stored, in the memory format of the network.
        channels_last: whether a row is stored as [H, W, C] and read as [C, H, W].
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    channels_last: bool

    @classmethod
    def of(cls, batch: Tensor) -> "Layout":
        """The layout for rows of `batch` [B, ...]."""
        channels_last = (
            batch.dim() == 4 and not batch.is_contiguous() and batch.is_contiguous(memory_format=torch.channels_last)
        )
        shape = batch.permute(0, 2, 3, 1).shape if channels_last else batch.shape
        return cls(batch.dtype, tuple(shape[1:]), channels_last)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return prod(self.shape) * self.dtype.itemsize

    def to_bytes(self, batch: Tensor) -> memoryview:
        """The rows of `batch` in the stored format."""
        rows = batch.permute(0, 2, 3, 1) if self.channels_last else batch
        return rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

    def map(self, file: Path, count: int) -> npt.NDArray[np.uint8]:
        """The `count` rows in `file`, [count, row_bytes], memory-mapped, so that they are read when they are used."""
        return np.memmap(file, np.uint8, "r", shape=(count, self.row_bytes))

    def gather(self, segments: Sequence[npt.NDArray[np.uint8]], rows: Sequence[Sequence[int]]) -> Tensor:
        """A batch of `rows`, each (segment, row in it), in the memory format of the network."""
        batch = torch.empty(len(rows), *self.shape, dtype=self.dtype)
        content = batch.view(-1).view(torch.uint8).view(len(rows), -1).numpy()
        for position, (segment, row) in enumerate(rows):
            content[position] = segments[segment][row]
        return batch.permute(0, 3, 1, 2) if self.channels_last else batch

    def to_dict(self) -> dict[str, Any]:
        """The layout as plain types."""
        return {"dtype": str(self.dtype), "shape": list(self.shape), "channels_last": self.channels_last}


@dataclass(frozen=True)
class Segment:
    """Files with the features of some images, one row for each.

    Attributes:
        files: one for each tensor at the cut.
        count: number of rows.
    """

    files: tuple[Path, ...]
    count: int


class Features:
    """The features of N images, in the rows of one or more segments.

    Args:
        cut: name of the part of the network that takes them as input.
        layouts: of each tensor at the cut.
        segments: files with the rows.
        rows: (segment, row in it) of each image, int64 [N, 2].
    """

    def __init__(
        self, cut: str, layouts: Sequence[Layout], segments: Sequence[Segment], rows: npt.NDArray[np.int64]
    ) -> None:
        self.cut, self.layouts, self.segments = cut, layouts, segments
        self.rows = rows
        self._mapped: list[list[npt.NDArray[np.uint8]]] | None = None

    def pick(self, indices: Tensor) -> tuple[Tensor, ...]:
        """The tensors at the cut for the images at `indices`, each [B, ...]."""
        if self._mapped is None:
            self._mapped = [
                [layout.map(segment.files[number], segment.count) for segment in self.segments]
                for number, layout in enumerate(self.layouts)
            ]
        rows = self.rows[indices.numpy()].tolist()
        return tuple(layout.gather(mapped, rows) for layout, mapped in zip(self.layouts, self._mapped, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # each process maps the files itself


@dataclass(frozen=True)
class FeatureTable:
    """The features of a split in each epoch.

    Attributes:
        by_epoch: epoch -> features; other epochs use images.
        period: number of epochs after which the features repeat; None: they do not, and later epochs use images.
    """

    by_epoch: Mapping[int, Features]
    period: int | None

    @property
    def complete(self) -> bool:
        """Whether no epoch needs images."""
        return self.period is not None

    def at(self, epoch: int) -> Features | None:
        """The features in `epoch`; None if it uses images."""
        return self.by_epoch.get(epoch if self.period is None else epoch % self.period)


class FeatureDataset(Dataset[Batch | FeatureBatch | GraftError]):
    """Batches of features in the epochs that have them, and of images in the others.

    Args:
        labels: of the images, see `graft.data.labels`.
        table: features of each epoch.
        images: for the other epochs; None if there are none.
    """

    def __init__(
        self,
        labels: Labels,
        table: FeatureTable,
        images: FileDataset | DecodedDataset | None,
    ) -> None:
        self.labels, self.table, self.images = labels, table, images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> Batch | FeatureBatch | GraftError:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch | FeatureBatch | GraftError:
        """The batch of these (epoch, index) pairs, all of one epoch; or an error, as in `FileDataset`."""
        epoch, indices = epoch_and_indices(keys)
        features = self.table.at(epoch)
        if features is None:
            assert self.images is not None
            if isinstance(self.images, FileDataset):
                samples = self.images.__getitems__(keys)
                return samples if isinstance(samples, GraftError) else collate(samples)
            return self.images.__getitems__(keys)
        padding = indices == PADDING
        rows = np.where(padding, 0, indices) % len(self)
        labels = padded(self.labels[rows], padding)
        picked = features.pick(torch.from_numpy(rows))
        indices = np.where(padding, PADDING, rows)
        return FeatureBatch(picked, torch.from_numpy(labels), torch.from_numpy(indices), features.cut)
