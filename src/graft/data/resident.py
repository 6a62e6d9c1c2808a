"""Sets that lie decoded in memory, or on the GPU: a whole batch is cropped and flipped at once."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from graft.chance import seed_of
from graft.data.augment import Augment
from graft.data.datasets import Batch, Key, epoch_and_indices
from graft.data.sampler import PADDING

Axis = tuple[Any, ...]
"""What chance gives each of N pictures down or across: offsets, flips, where it is erased from and to, each [N, 1]."""

ERASED = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
ATTEMPTS = 10
"""Least and most of a picture's area that is erased, height / width, and tries until that fits into it: as
torchvision's RandomErasing (Zhong et al. 2020)."""


class ResidentDataset(Dataset[Batch]):
    """All pictures decoded once and held; batches lie where the pictures lie.

    Args:
        pixels: uint8 [N, S, S, 3], as evaluation sees them.
        labels: int64 [N]; PADDING for pictures that count nowhere.
        augment: flips, padded crops and erasing; None for evaluation.
        seed: with the epoch, decides a table of every picture's offsets and flips.
        device: the GPU to hold a copy of them, and to pick and augment batches on, with the same result to the bit;
            None: this memory, where NumPy does it, because a team of threads costs more than it gains.
        mean_colour: what is erased turns into.
    """

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        *,
        augment: Augment | None,
        seed: int,
        device: torch.device | None = None,
        mean_colour: Sequence[int] = (0, 0, 0),
    ) -> None:
        if augment is not None and not augment.batchable:
            raise ValueError("only flips, padded crops and erasing can be done to whole batches")
        self.pixels, self.labels, self.seed, self.device = np.ascontiguousarray(pixels), labels, seed, device
        self.augment = None if augment == Augment() else augment
        self._library: Any = np if device is None else torch
        self._pixels, self._labels = self._placed(self.pixels), self._placed(self.labels)
        self._straight = self._placed(np.arange(self.pixels.shape[1]))
        self._colour = self._placed(np.array(mean_colour, dtype=np.uint8))
        self._table: tuple[int, list[Axis]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these (epoch, index) pairs, all of one epoch."""
        epoch, wanted = epoch_and_indices(keys)
        indices, where = self._placed(wanted), self._library.where
        padding = indices == PADDING
        rows = where(padding, 0, indices)
        images = self._pixels[rows] if self.augment is None else self._augmented(epoch, rows)
        if PADDING in wanted:  # asked of the host's own array: a GPU would have to be waited for
            images[padding] = 0
        labels = where(padding, PADDING, self._labels[rows])
        indices = where(labels == PADDING, PADDING, indices)  # of a picture that was lost, too
        # channels last is what convolutions like
        return Batch(torch.as_tensor(images).permute(0, 3, 1, 2), torch.as_tensor(labels), torch.as_tensor(indices))

    def _augmented(self, epoch: int, rows: Any) -> Any:
        """Crop and flip by looking each output pixel's row and column up in the picture; then erase."""
        size = self.pixels.shape[1]
        axes = [[each[rows] for each in axis] for axis in self._draws(epoch)]
        ys, xs = (self._positions(offsets, flips) for offsets, flips, _, _ in axes)
        source = (rows[:, None, None] * size + ys[:, :, None]) * size + xs[:, None, :]  # [B, S, S]
        colours = self._pixels.reshape(-1, 3)
        images = colours.take(source, axis=0) if self.device is None else colours[source]  # NumPy's take is faster
        assert self.augment is not None
        if not self.augment.random_erasing:
            return images
        inside_y, inside_x = ((start <= self._straight) & (self._straight < end) for _, _, start, end in axes)
        return self._library.where((inside_y[:, :, None] & inside_x[:, None, :])[..., None], self._colour, images)

    def _positions(self, offsets: Any, flips: Any) -> Any:
        """Which source position each output position shows, mirrored at the border: [B, S]."""
        size = self.pixels.shape[1]
        where = self._library.where
        positions = where(flips, size - 1 - self._straight, self._straight) + offsets
        period = max(2 * (size - 1), 1)
        folded = positions % period
        return where(folded < size, folded, period - folded)

    def _draws(self, epoch: int) -> list[Axis]:
        if self._table is None or self._table[0] != epoch:
            self._table = epoch, self._draw(epoch)
        return self._table[1]

    def _draw(self, epoch: int) -> list[Axis]:
        """Down and across."""
        assert self.augment is not None
        generator = torch.Generator().manual_seed(seed_of(self.seed, "augment", epoch))
        count, padding = len(self), self.augment.random_crop_padding or 0
        moves = [
            (
                torch.randint(-padding, padding + 1, (count, 1), generator=generator),
                torch.rand(count, 1, generator=generator) < flip,
            )
            for flip in (self.augment.vertical_flip, self.augment.horizontal_flip)
        ]
        if self.augment.alternate_flips:
            coins = torch.Generator().manual_seed(seed_of(self.seed, "mirror"))
            moves[1] = moves[1][0], (torch.rand(count, 1, generator=coins) < 0.5) ^ bool(epoch % 2)
        erased = _erased(count, self.pixels.shape[1], self.augment.random_erasing, generator)
        return [
            tuple(self._placed(each.numpy()) for each in (*move, *span))
            for move, span in zip(moves, erased, strict=True)
        ]

    def _placed(self, array: npt.NDArray[Any]) -> Any:
        """An array of `_library`, where the pictures are; nobody waits for what a GPU has still to do."""
        return array if self.device is None else torch.from_numpy(array).to(self.device, non_blocking=True)


def _erased(count: int, size: int, probability: float, generator: torch.Generator) -> list[tuple[torch.Tensor, ...]]:
    """Where `count` pictures of `size` pixels are erased from and to, down and across, each int64 [N, 1]; from 0 to 0
    where one is not."""
    if not probability:
        nowhere = torch.zeros(count, 1, dtype=torch.long)
        return [(nowhere, nowhere)] * 2

    def drawn(least: float, most: float, each: int) -> torch.Tensor:
        return least + (most - least) * torch.rand(count, each, generator=generator)

    chosen = torch.rand(count, 1, generator=generator) < probability
    area = size**2 * drawn(*ERASED, ATTEMPTS)
    least, most = map(math.log, ERASED_RATIO)
    ratio = drawn(least, most, ATTEMPTS).exp()
    sides = [(area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()]
    fits = (sides[0] < size) & (sides[1] < size)
    first = fits.long().argmax(1, keepdim=True)
    chosen = chosen & fits.gather(1, first)
    spans: list[tuple[torch.Tensor, ...]] = []
    for side in sides:
        length = side.gather(1, first)
        start = (drawn(0, 1, 1) * (size - length + 1)).long()
        spans.append((start * chosen, (start + length) * chosen))
    return spans
