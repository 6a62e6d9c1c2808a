"""Pictures as batches; what chance does to one is a pure function of (seed, epoch, index)."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from graft.chance import seed_of, seeded
from graft.data.decoding import Progress
from graft.data.held import HeldImages
from graft.data.images import ImageSet
from graft.data.lost import LostImages
from graft.data.sampler import PADDING
from graft.data.transforms import Picture, Transform
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
    """Transforms a picture each time it is asked for.

    Args:
        images: the pictures, decoded each time or held.
        transform: a picture → uint8 [3, S, S]; draws from torch's global generator, if from any.
        size: S.
        seed: seeds that generator, together with epoch and index; outside it goes on undisturbed.
        lost: what becomes of a picture that cannot be read; None: an error.
        replace: whether another takes its place, as in training, or nothing, as in evaluation.
        alternate_flips: mirror every picture in every other epoch.
    """

    def __init__(
        self,
        images: ImageSet | HeldImages,
        transform: Transform,
        *,
        size: int,
        seed: int,
        lost: LostImages | None = None,
        replace: bool = False,
        alternate_flips: bool = False,
    ) -> None:
        self.images, self.transform, self.size, self.seed = images, transform, size, seed
        self.lost, self.replace, self.alternate_flips = lost, replace, alternate_flips

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Sample:
        epoch, place = _pair(key)
        picture, index = self._load(place)
        if picture is None:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), PADDING, PADDING
        with seeded(self.seed, "augment", epoch, place):
            image = self.transform(picture)
        if self.alternate_flips and (seed_of(self.seed, "mirror", place) + epoch) % 2:
            image = image.flip(-1)
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
        if isinstance(self.images, HeldImages):
            with contextlib.closing(Progress("training images", len(self.images))) as bar:
                for done in self.images.decode():
                    bar.update(done)

    def _load(self, index: int) -> tuple[Picture | None, int]:
        if index == PADDING:
            return None, PADDING
        if self.lost is None:
            return self.images.load(index), index
        return self.lost.load(self.images, index, replace=self.replace)


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
