"""The order of the images in an epoch, and their distribution over processes."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from graft.data.labels import PADDING as PADDING  # index of the padding at the end of an evaluation shard
from graft.data.labels import Labels, strata_of
from graft.data.stored import Blocks
from graft.seeding import seed_of

CHUNK = 1 << 16
"""Number of indices that are Python objects at a time."""


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs, of which all further randomness is a function, together with the seed.

    In training (`shuffle`) every process gets the same number of images, in a new order each epoch; a few images are
    repeated if their number is not a multiple of the number of processes. In evaluation every image occurs exactly once
    over all processes, and the shards are filled up with index PADDING.

    With `balance`, an epoch has the same number of images as without, but equally many of each class: of a large class
    a new random part each epoch; the images of a small one several times. The r-th repetition of image i in an epoch
    has index i + r N, of which its augmentation is a function too, so that it is augmented differently each time.

    With `blocks`, the blocks come in a new order each epoch, and at any time the images of about `blocks.window` of
    them are mixed; each process gets a contiguous part of that order, so that few blocks are read by two of them.

    Args:
        length: number of images.
        seed: determines the order, together with the epoch.
        shuffle: for training; False for evaluation.
        order: for evaluation; None: ascending.
        rank, world: rank of this process, and number of processes.
        drop_last_of: batch size for which a last batch of a single image is dropped; None: never.
        balance: class index of each image, [N], to draw equally many of each class; None: each image once.
        blocks: in which the images should be read in training; None: in any order.

    Attributes:
        epoch: of the next iteration.
        start: number of this process's images that the next iteration, and only that, skips to resume within an epoch;
            `len()` remains that of the whole epoch.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool,
        order: Sequence[int] | None = None,
        rank: int = 0,
        world: int = 1,
        drop_last_of: int | None = None,
        balance: Labels | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self.length, self.seed, self.shuffle, self.rank, self.world = length, seed, shuffle, rank, world
        self.order, self.blocks = order, blocks if shuffle else None
        self.members = None if balance is None else [np.flatnonzero(balance == label) for label in np.unique(balance)]
        self.epoch = 0
        self.start = 0
        share = math.ceil(length / world)
        single = drop_last_of is not None and drop_last_of > 1 and share % drop_last_of == 1 and share > 1
        self._share = share - 1 if single else share

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this at the start of each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self._share

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start, self.start = self.epoch, self.start, 0
        order = self._order(epoch)
        each = len(order) // self.world
        contiguous = slice(self.rank * each, (self.rank + 1) * each)
        mine = order[contiguous if self.blocks is not None else slice(self.rank, None, self.world)][: self._share]
        for begin in range(start, len(mine), CHUNK):  # as an array, a large set's order takes a quarter of the memory
            for index in mine[begin : begin + CHUNK].tolist():
                yield epoch, index

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """All indices of an epoch, repeated or padded so that each process gets the same number."""
        total = math.ceil(self.length / self.world) * self.world
        if not self.shuffle:
            indices = np.arange(self.length) if self.order is None else np.asarray(self.order, dtype=np.int64)
            return np.concatenate([indices, np.full(total - self.length, PADDING)])
        if self.members is not None:
            return self._balanced_order(epoch, total)
        if self.blocks is not None:
            return self._order_of_blocks(self.blocks, epoch, total)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        order = torch.randperm(self.length, generator=generator).numpy()
        return order if total == self.length else np.resize(order, total)

    def _order_of_blocks(self, blocks: Blocks, epoch: int, total: int) -> npt.NDArray[np.int64]:
        """`total` indices: image i comes at a random time in [t, t + window), where t is the time of its block."""
        generator = np.random.default_rng(seed_of(self.seed, "order of blocks", epoch))
        numbers, block = np.unique(blocks.of, return_inverse=True)
        times = generator.permutation(len(numbers))[block] + blocks.window * generator.random(self.length)
        order = np.argsort(times, kind="stable")
        return np.resize(order, total)

    def _balanced_order(self, epoch: int, total: int) -> npt.NDArray[np.int64]:
        """`total` indices, equally many of each class; which classes get one more changes from epoch to epoch."""
        assert self.members is not None
        generator = np.random.default_rng(seed_of(self.seed, "balanced order", epoch))
        classes = len(self.members)
        counts = np.full(classes, total // classes)
        counts[generator.permutation(classes)[: total % classes]] += 1
        drawn = []
        for members, count in zip(self.members, counts.tolist(), strict=True):
            rounds = -(-count // len(members))
            repeated = [generator.permutation(members) + number * self.length for number in range(rounds)]
            drawn.append(np.concatenate(repeated)[:count] if rounds else np.empty(0, dtype=np.int64))
        return generator.permutation(np.concatenate(drawn))


def stratified_order(labels: Labels, seed: int) -> list[int]:
    """A random order of N images of which every beginning has nearly the same share of each class.

    Args:
        labels: of each image, [N] or [N, C]; of several labels the rarest counts.
        seed: the only source of randomness.
    """
    generator = np.random.default_rng(seed_of(seed, "stratified order"))
    strata, positions = strata_of(labels), np.empty(len(labels))
    for stratum in np.unique(strata):
        (members,) = np.nonzero(strata == stratum)
        ranks = generator.permutation(len(members)) + generator.random(len(members))
        positions[members] = ranks / len(members)
    order: list[int] = np.argsort(positions, kind="stable").tolist()
    return order
