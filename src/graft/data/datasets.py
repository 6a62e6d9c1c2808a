"""Images in batches, augmented by a pure function of (seed, epoch, image)."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from graft.data.transforms import Picture, black, eval_transform
from graft.data.unreadable import UnreadableImages
from graft.errors import GraftError

Sample = tuple[Tensor, Any, int]
"""(image, label, index) of one image, as in a Batch; the label is an element or a row of `ImageSet.labels`."""

Key = tuple[int, int] | int
"""(epoch, index); an index alone is of epoch 0. Index i + r N is the r-th repetition of image i of N in the epoch."""


class Batch(NamedTuple):
    """Images before normalisation, with their labels and indices.

    Attributes:
        images: uint8 or uint16 [B, C, H, W].
        labels: int64 [B], or int8 [B, C] with several labels per image; -1 for padding, which losses and metrics
            ignore.
        indices: int64 [B], into the data set; -1 for padding.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def real(self) -> "Batch":
        """The batch without padding."""
        kept = real_rows(self.labels)
        return self if kept.all() else Batch(self.images[kept], self.labels[kept], self.indices[kept])


def real_rows(labels: Tensor) -> Tensor:
    """Whether each image of a batch is none of padding, bool [B]."""
    return (labels if labels.ndim == 1 else labels[:, 0]) != PADDING


class FileDataset(Dataset[Sample]):
    """Transforms an image each time it is requested.

    Args:
        images: the images, decoded each time or cached.
        preprocessing: resizing and cropping in evaluation.
        augment: augmentation by (seed, epoch, key of the image); None in evaluation.
        seed: of the run.
        unreadable: handles images that cannot be read; None: they are an error.
        replace: replace an unreadable image by another, as in training, rather than by padding, as in evaluation; it is
            augmented with the random parameters of the requested image.
        keys: of the images, see `graft.data.images.draw_keys`, int64 [N]; None: their indices.
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
        keys: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.keys = np.arange(len(images)) if keys is None else keys
        self.images, self.preprocessing = images, preprocessing
        self.unreadable, self.replace = unreadable, replace
        self._eval_transform = eval_transform(preprocessing)
        self._augmenter = Augmenter(augment, seed, preprocessing) if augment else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Sample:
        epoch, requested = _pair(key)
        picture, index = self._load(requested if requested == PADDING else requested % len(self))
        if picture is None:
            padding = np.full_like(self.images.labels[0], PADDING)
            return black(self.preprocessing, 1)[0], padding, PADDING
        if self._augmenter is None:
            return self._eval_transform(picture), self.images.labels[index], index
        (key_of_image,) = keys_of_repetitions(self.keys, np.array([requested])).tolist()
        image = self._augmenter.picture(picture, epoch, key_of_image)
        return image, self.images.labels[index], index

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample] | GraftError:
        """The samples of a batch, or an error, which the main process raises without the worker's stack trace."""
        requested = [index for _, index in map(_pair, keys) if index != PADDING]
        try:
            with self.images.reading_ahead([index % len(self) for index in requested]):
                return [self[key] for key in keys]
        except GraftError as error:
            return error

    def decode_ahead(self) -> None:
        """Decode the images that are kept in memory before worker processes start, which then share them."""
        if isinstance(self.images, CachedImages):
            decode_cached(self.images)

    def _load(self, index: int) -> tuple[Picture | None, int]:
        if index == PADDING:
            return None, PADDING
        if self.unreadable is None:
            return self.images.load(index), index
        return self.unreadable.load(self.images, index, replace=self.replace)


def decode_cached(images: CachedImages) -> None:
    """Decode the images that are not cached yet, with a progress bar."""
    with contextlib.closing(Progress("training images", len(images))) as bar:
        for done in images.decode():
            bar.update(done)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of a FileDataset as a Batch."""
    images, labels, indices = zip(*samples, strict=True)
    # channels-last is fastest for convolutions, and the format of random crops
    stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return Batch(stacked, torch.from_numpy(np.stack(labels)), torch.tensor(indices))


def epoch_and_indices(keys: Sequence[Key]) -> tuple[int, npt.NDArray[np.int64]]:
    """The common epoch of a batch's keys, and their indices, int64 [B]."""
    pairs = [_pair(key) for key in keys]
    epoch = pairs[0][0]
    if any(other != epoch for other, _ in pairs):
        raise ValueError("a batch belongs to one epoch")
    return epoch, np.array([index for _, index in pairs], dtype=np.int64)


def keys_of_repetitions(keys: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The augmentation keys of requested indices, which differ for the repetitions of an image in an epoch, int64 [B].

    Args:
        keys: of the N images, in [0, 2**32).
        indices: i + r N for the r-th repetition of image i.
    """
    repetitions, rows = np.divmod(indices, len(keys))
    return keys[rows] + (repetitions << 32)


def _pair(key: Key) -> tuple[int, int]:
    return (0, key) if isinstance(key, int) else key
