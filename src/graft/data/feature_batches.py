"""Batches of features: what the frozen layers made of each picture, read from files instead of computed again."""

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
from graft.data.resident import DecodedDataset
from graft.data.sampler import PADDING
from graft.errors import GraftError


class FeatureBatch(NamedTuple):
    """Features, and what they are of. There are no images in it.

    Attributes:
        features: the tensors at the cut, each [B, ...].
        labels: int64 [B]; -1 for padding, which counts in no loss and no metric.
        indices: int64 [B], into the data set; -1 for padding.
        cut: which part of the network goes on from here.
    """

    features: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor
    cut: str


@dataclass(frozen=True)
class Layout:
    """How one tensor at the cut lies in its file, row after row.

    Attributes:
        dtype: of its numbers.
        shape: of one row as stored; a map is stored as the network holds it.
        channels_last: whether a row is [H, W, C] and becomes [C, H, W] when it is read.
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
        """The rows of `batch` as they are stored."""
        rows = batch.permute(0, 2, 3, 1) if self.channels_last else batch
        return rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

    def map(self, file: Path, count: int) -> Tensor:
        """The `count` rows in `file`, mapped into memory: read when they are used."""
        rows = torch.from_file(str(file), shared=False, size=count * prod(self.shape), dtype=self.dtype)
        return rows.view(count, *self.shape)

    def pick(self, rows: Tensor, indices: Tensor) -> Tensor:
        """A batch of the rows at `indices`, in memory, as the network would hold it."""
        batch = rows[indices]
        return batch.permute(0, 3, 1, 2) if self.channels_last else batch

    def to_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {"dtype": str(self.dtype), "shape": list(self.shape), "channels_last": self.channels_last}


class Features:
    """The features of N pictures, in files.

    Args:
        cut: which part of the network goes on from them.
        files: one for each tensor at the cut.
        layouts: how each lies in its file.
        count: N.
    """

    def __init__(self, cut: str, files: Sequence[Path], layouts: Sequence[Layout], count: int) -> None:
        self.cut, self.files, self.layouts, self.count = cut, tuple(files), tuple(layouts), count
        self.rows: list[Tensor] | None = None

    def pick(self, indices: Tensor) -> tuple[Tensor, ...]:
        """The tensors at the cut for the pictures at `indices`."""
        if self.rows is None:
            self.rows = [layout.map(file, self.count) for layout, file in zip(self.layouts, self.files, strict=True)]
        return tuple(layout.pick(rows, indices) for layout, rows in zip(self.layouts, self.rows, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": None}  # a process that is sent this maps the files itself


@dataclass(frozen=True)
class FeatureTable:
    """Which features a part of the data has in which epoch.

    Attributes:
        by_epoch: features of an epoch; images where an epoch is missing.
        period: after so many epochs they come again from epoch 0; None: never, and later epochs have images.
    """

    by_epoch: Mapping[int, Features]
    period: int | None

    @property
    def complete(self) -> bool:
        """Whether no epoch needs images."""
        return self.period is not None

    def at(self, epoch: int) -> Features | None:
        """The features in `epoch`, or None where it has images."""
        return self.by_epoch.get(epoch if self.period is None else epoch % self.period)


class FeatureDataset(Dataset[Batch | FeatureBatch | GraftError]):
    """Features in the epochs that have them, images in the others; a whole batch at once.

    Args:
        labels: int64 [N].
        table: which features when.
        images: for the other epochs; None where there are none.
    """

    def __init__(
        self,
        labels: npt.NDArray[np.int64],
        table: FeatureTable,
        images: FileDataset | DecodedDataset | None,
    ) -> None:
        self.labels, self.table, self.images = labels, table, images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> Batch | FeatureBatch | GraftError:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch | FeatureBatch | GraftError:
        """The batch of these (epoch, index) pairs, all of one epoch; or why there is none, as in FileDataset."""
        epoch, indices = epoch_and_indices(keys)
        features = self.table.at(epoch)
        if features is None:
            assert self.images is not None
            if isinstance(self.images, FileDataset):
                samples = self.images.__getitems__(keys)
                return samples if isinstance(samples, GraftError) else collate(samples)
            return self.images.__getitems__(keys)
        padding = indices == PADDING
        rows = np.where(padding, 0, indices)
        labels = np.where(padding, PADDING, self.labels[rows])
        picked = features.pick(torch.from_numpy(rows))
        return FeatureBatch(picked, torch.from_numpy(labels), torch.from_numpy(indices), features.cut)
