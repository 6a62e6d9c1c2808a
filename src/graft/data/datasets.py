"""Pictures as batches; what chance does to one is a pure function of (seed, epoch, index)."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from graft.data.augment import Augment
from graft.data.augmenter import Augmenter
from graft.data.cached_images import CachedImages
from graft.data.decoding import Progress
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.sampler import PADDING
from graft.data.transforms import Picture, eval_transform
from graft.data.unreadable import UnreadableImages
from graft.errors import GraftError

Sample = tuple[Tensor, int, int]
"""(image, label, index) as in a Batch, but of one picture."""

Key = tuple[int, int] | int
"""(epoch, index); an index alone counts as of epoch 0."""


class Batch(NamedTuple):
    """Images before normalisation, and what they are.

    Attributes:
        images: uint8 [B, 3, S, S].
        labels: int64 [B]; -1 for padding, which counts in no loss and no metric.
        indices: int64 [B], into the data set; -1 for padding.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def real(self) -> "Batch":
        """Without padding."""
        kept = self.labels != PADDING
        return self if kept.all() else Batch(self.images[kept], self.labels[kept], self.indices[kept])


class FileDataset(Dataset[Sample]):
    """Transforms a picture each time it is requested.

    Args:
        images: the pictures, decoded each time or held.
        preprocessing: what evaluation does to them.
        augment: what training does to them, by the draws of (seed, epoch, index); None for evaluation.
        seed: of the run.
        unreadable: what becomes of a picture that cannot be read; None: an error.
        replace: whether another takes its place, as in training, or nothing, as in evaluation; the draws stay those
            of the index that was requested.
    """

    def __init__(
        self,
        images: ImageSet | CachedImages,
        preprocessing: Preprocessing,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        unreadable: UnreadableImages | None = None,
        replace: bool = False,
    ) -> None:
        self.images, self.size = images, preprocessing.input_size
        self.unreadable, self.replace = unreadable, replace
        self._evaluated = eval_transform(preprocessing)
        self._augmenter = Augmenter(augment, seed, preprocessing) if augment else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Sample:
        epoch, place = _pair(key)
        picture, index = self._load(place)
        if picture is None:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), PADDING, PADDING
        image = self._augmenter.picture(picture, epoch, place) if self._augmenter else self._evaluated(picture)
        return image, int(self.images.labels[index]), index

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample] | GraftError:
        """The samples of a batch, or why there are none: raised in a worker process, an error would reach the user
        below a stack trace."""
        try:
            return [self[key] for key in keys]
        except GraftError as error:
            return error

    def decode_ahead(self) -> None:
        """Decode what is held in memory, before processes begin that share it."""
        if isinstance(self.images, CachedImages):
            decode_cached(self.images)

    def _load(self, index: int) -> tuple[Picture | None, int]:
        if index == PADDING:
            return None, PADDING
        if self.unreadable is None:
            return self.images.load(index), index
        return self.unreadable.load(self.images, index, replace=self.replace)


def decode_cached(images: CachedImages) -> None:
    """Decode those that are not yet held, with a progress bar."""
    with contextlib.closing(Progress("training images", len(images))) as bar:
        for done in images.decode():
            bar.update(done)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of a FileDataset as a Batch."""
    images, labels, indices = zip(*samples, strict=True)
    # channels last is what convolutions like, and how random crops come
    stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return Batch(stacked, torch.tensor(labels), torch.tensor(indices))


def epoch_and_indices(keys: Sequence[Key]) -> tuple[int, npt.NDArray[np.int64]]:
    """The one epoch that all of a batch's keys are of, and their indices, int64 [B]."""
    pairs = [_pair(key) for key in keys]
    epoch = pairs[0][0]
    if any(other != epoch for other, _ in pairs):
        raise ValueError("a batch belongs to one epoch")
    return epoch, np.array([index for _, index in pairs], dtype=np.int64)


def _pair(key: Key) -> tuple[int, int]:
    return (0, key) if isinstance(key, int) else key
