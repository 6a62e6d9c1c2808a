"""Data sets kept decoded in main memory or on the GPU, where batches are cropped and augmented."""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from graft.data.augment import Augment
from graft.data.augmenter import Augmenter, to_device
from graft.data.bands import Levels
from graft.data.cached_images import CachedImages
from graft.data.datasets import Batch, Key, epoch_and_indices, keys_of_repetitions
from graft.data.draws import Ints
from graft.data.labels import PADDING, Labels, padded, real
from graft.data.preprocessing import Preprocessing
from graft.data.unreadable import UnreadableImages

MAX_PIXELS = 1 << 23
"""Most pixels of random crops, padded to a common size, that are resized at once; they take 0.3 GB."""


class DecodedDataset(Dataset[Batch]):
    """Decoded images, from which batches are made on the same device.

    Args:
        labels: of the images, see `graft.data.labels`; PADDING for those that losses and metrics ignore.
        device: of the images and the batches; None: main memory.
        sources: index of the image that is used for each index, int64 [N]; None: the same.
        keys: of the images, on which their augmentation depends (`graft.data.images.draw_keys`), int64 [N]; None: their
            indices.
    """

    def __init__(
        self, labels: Labels, device: torch.device | None, sources: Ints | None = None, keys: Ints | None = None
    ) -> None:
        self.labels, self.device = labels, device
        self.keys = np.arange(len(labels)) if keys is None else keys
        self._sources = np.arange(len(labels)) if sources is None else sources

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these (epoch, index) pairs, all of one epoch."""
        epoch, requested = epoch_and_indices(keys)
        padding = requested == PADDING
        indices = np.where(padding, 0, requested)
        rows = indices % len(self)
        images = self._images(epoch, rows, keys_of_repetitions(self.keys, indices))
        if padding.any():
            black = to_device(np.flatnonzero(padding), self.device)
            if self.device is None:
                images[black] = 0
            else:
                images.index_fill_(0, black, 0)
        labels = padded(self.labels[rows], padding)
        sources = np.where(real(labels), self._sources[rows], PADDING)  # unreadable images are padding too
        # channels-last is fastest for convolutions
        return Batch(torch.as_tensor(images).permute(0, 3, 1, 2), *self._on_device(labels, sources))

    def _on_device(self, labels: Labels, sources: Ints) -> Sequence[Tensor]:
        """Both arrays on the device; of one label per image in a single transfer."""
        if labels.ndim == 1:
            return torch.as_tensor(to_device(np.stack([labels, sources]), self.device)).unbind()
        return [torch.as_tensor(to_device(each, self.device)) for each in (labels, sources)]

    @abstractmethod
    def _images(self, epoch: int, rows: Ints, keys: Ints) -> Any:
        """New images of these rows, uint8 or uint16 [B, H, W, C], augmented by (epoch, key)."""


class ResidentDataset(DecodedDataset):
    """All images of a set, resized and cropped once as in evaluation.

    Args:
        pixels: uint8 or uint16 [N, H, W, C].
        labels: of the images, see `graft.data.labels`; PADDING for those that losses and metrics ignore.
        preprocessing: with which `pixels` were made.
        augment: without a random resized crop; None in evaluation.
        seed: of the run.
        device: the GPU that keeps a copy of the images and on which batches are augmented, with the same result; None:
            main memory, with NumPy, because starting torch's threads costs more than it gains.
        keys: as in `DecodedDataset`.
    """

    def __init__(
        self,
        pixels: Levels,
        labels: Labels,
        preprocessing: Preprocessing,
        *,
        augment: Augment | None,
        seed: int,
        device: torch.device | None = None,
        keys: Ints | None = None,
    ) -> None:
        super().__init__(labels, device, keys=keys)
        if augment is not None and not augment.batchable:
            raise ValueError("a random resized crop needs the original images")
        self.pixels: Levels = np.ascontiguousarray(pixels)
        self._pixels: Any = self.pixels if device is None else torch.from_numpy(self.pixels).to(device)
        self._augmenter = Augmenter(augment, seed, preprocessing, device) if augment else None

    def _images(self, epoch: int, rows: Ints, keys: Ints) -> Any:
        if self._augmenter is None:
            return self._pixels[to_device(rows, self.device)]
        return self._augmenter.batch(self._pixels, rows, epoch, keys)


class CroppedDataset(DecodedDataset):
    """RGB images of different sizes on a GPU, where they are randomly cropped, resized and augmented.

    Crops are resized bit-identically to torchvision on a CPU with AVX2, unless an image shrinks so far that sums are
    rounded; on other CPUs torchvision rounds differently, by at most two grey levels.

    Args:
        cached: the decoded images.
        sources: index of the image that is used for each index, int64 [N]: its own, or the replacement of an unreadable
            image.
        preprocessing: input size, interpolation, mean colour.
        augment: with a random resized crop.
        seed: of the run.
        device: the GPU.
        keys: as in `DecodedDataset`.
    """

    def __init__(
        self,
        cached: CachedImages,
        sources: Ints,
        preprocessing: Preprocessing,
        *,
        augment: Augment,
        seed: int,
        device: torch.device,
        keys: Ints | None = None,
    ) -> None:
        super().__init__(cached.labels[sources], device, sources, keys)
        block, regions = cached.contents()
        self._regions = regions[sources]
        self._colours = block.to(device).view(-1, 3)
        self._size, self._interpolation = preprocessing.size, preprocessing.interpolation
        self._augmenter = Augmenter(augment, seed, preprocessing, device)

    def _images(self, epoch: int, rows: Ints, keys: Ints) -> Tensor:
        starts, heights, widths = self._regions[rows].T
        crops = self._augmenter.draws.crops(epoch, keys, heights, widths)
        top, left, crop_heights, crop_widths = crops.T
        table = np.stack([starts // 3 + top * widths + left, widths, crop_heights, crop_widths], 1)
        order = np.argsort(crop_heights * crop_widths, kind="stable")
        resized = [self._resized(table[part]) for part in _chunks(order, crop_heights, crop_widths)]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        images: Tensor = self._augmenter.batch(torch.cat(resized), back, epoch, keys)
        return images

    def _resized(self, table: Ints) -> Tensor:
        """Resized crops, uint8 [n, H, W, 3], from a table of (first pixel, row stride in pixels, height, width)."""
        (height, width), count = self._size, len(table)
        longest, widest = table[:, 2:].max(0).tolist()
        first, stride, crop_heights, crop_widths = to_device(table, self.device)[:, :, None, None].unbind(1)
        ys = torch.arange(longest, device=self.device)[:, None]
        xs = torch.arange(widest, device=self.device)
        ys, xs = torch.minimum(ys, crop_heights - 1), torch.minimum(xs, crop_widths - 1)
        pixels = self._colours[first + ys * stride + xs]
        with _without_autocast(pixels.device):
            # horizontally first and rounded in between, as torchvision does on a CPU
            columns = pixels.transpose(1, 2).reshape(count, widest, longest * 3).float()
            narrowed = self._weighted(crop_widths, widest, columns, width)
            rows = narrowed.view(count, width, longest, 3).transpose(1, 2).reshape(count, longest, width * 3)
            return self._weighted(crop_heights, longest, rows, height).view(count, height, width, 3).to(torch.uint8)

    def _weighted(self, lengths: Tensor, longest: int, pixels: Tensor, size: int) -> Tensor:
        weights, whole = resize_weights(lengths, longest, size, self._interpolation)
        # in two parts of 8 bits: exact in TF32 and bfloat16 too, in which a GPU may multiply
        high = (weights / 256).floor()
        sums = torch.cat([high, weights - 256 * high], 1) @ pixels
        total = 256 * sums[:, :size] + sums[:, size:]
        return ((total + whole / 2) / whole).floor_().clamp_(0, 255)


def readable_sources(cached: CachedImages, unreadable: UnreadableImages | None) -> Ints | None:
    """Index of the image to use for each index, [N]: its own, or that of the next readable image.

    Returns:
        None if some images are not in `cached` because they do not fit.

    Raises:
        UnreadableImage: an image cannot be read, and `unreadable` is None.
    """
    _, regions = cached.contents()
    sources = np.arange(len(cached))
    for index in np.flatnonzero(regions[:, 1] == 0).tolist():
        if unreadable is None:
            cached.load(index)
            return None
        _, sources[index] = unreadable.load(cached, index, replace=True)
        if not regions[sources[index], 1]:
            return None
    return sources


def resize_weights(lengths: Tensor, longest: int, size: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """Integer weights of the input pixels in each of `size` output pixels of an antialiased resize.

    They equal those of torchvision's resize of 8-bit images on a CPU; float32 sums of them are exact unless the image
    shrinks far.

    Args:
        lengths: input pixels of each image, [n, 1, 1].
        longest: the largest of them, or more.
        size: output pixels.
        interpolation: "nearest", "bilinear" or "bicubic".

    Returns:
        (weights, their sum up to rounding): float32 [n, size, longest] and [n, 1, 1]; zeros beyond an image's length.
    """
    inputs = torch.arange(longest, dtype=torch.float64, device=lengths.device)
    outputs = torch.arange(size, dtype=torch.float64, device=lengths.device)[:, None]
    scale = lengths.double() / size
    if interpolation == "nearest":
        nearest = torch.minimum((outputs.float() * scale.float()).floor(), lengths - 1)
        return (inputs == nearest).float(), torch.ones_like(scale, dtype=torch.float32)
    distance = (inputs + 0.5 - (outputs + 0.5) * scale).abs() * (1 / scale.clamp(min=1))
    if interpolation == "bilinear":
        weights = (1 - distance).clamp(min=0)
    else:  # Keys 1981, a = -1/2
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = -0.5 * (((distance - 5) * distance + 8) * distance - 4)
        weights = torch.where(distance < 1, near, far * (distance < 2))
    weights = weights * (inputs < lengths)
    weights = weights / weights.sum(-1, keepdim=True)
    largest = weights.amax((1, 2), keepdim=True)
    whole = torch.exp2((torch.log2((2**15 - 0.5) / largest).ceil() - 1).clamp(max=22))  # weights fit into 16 bits
    return (weights * whole).round().float(), whole.float()


def _chunks(order: Ints, crop_heights: Ints, crop_widths: Ints) -> Iterator[Ints]:
    """Parts of `order` whose crops, padded to the largest, have at most MAX_PIXELS pixels."""
    start, longest, widest = 0, 0, 0
    for end, row in enumerate(order.tolist()):
        longest, widest = max(longest, int(crop_heights[row])), max(widest, int(crop_widths[row]))
        if end > start and (end + 1 - start) * longest * widest > MAX_PIXELS:
            yield order[start:end]
            start, longest, widest = end, int(crop_heights[row]), int(crop_widths[row])
    yield order[start:]


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
