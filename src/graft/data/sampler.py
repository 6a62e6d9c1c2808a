"""In which order, and by which process, the images of an epoch are seen."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from graft.seeding import seed_of

PADDING = -1
"""The index that fills a shard of evaluation up; its label is -1 too, so that no metric counts it."""


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs: all chance downstream is a function of the seed and of these.

    Training (`shuffle`): every process gets the same number, the order is drawn anew each epoch, and a few
    images come twice where the processes do not divide the set. Evaluation: every image comes exactly once
    over all processes, and the shards are filled up with index PADDING.

    Args:
        length: how many images there are.
        seed: decides the order, together with the epoch.
        shuffle: training's order or evaluation's.
        order: evaluation's order; None: ascending.
        rank, world: this process and how many there are.
        drop_last_of: a batch size; when it leaves a last batch of a single image, that image sits this epoch
            out.

    Attributes:
        epoch: the one that the next iteration yields.
        start: how many of this process's images the next iteration leaves out at the beginning (resuming in
            the middle of an epoch); good for one iteration. `len()` stays that of the whole epoch.
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
    ) -> None:
        self.length, self.seed, self.shuffle, self.rank, self.world = length, seed, shuffle, rank, world
        self.order = order
        self.epoch = 0
        self.start = 0
        share = math.ceil(length / world)
        alone = drop_last_of is not None and drop_last_of > 1 and share % drop_last_of == 1 and share > 1
        self._share = share - 1 if alone else share

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of `epoch`; Lightning calls this at the start of each."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self._share

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start, self.start = self.epoch, self.start, 0
        mine = self._order(epoch)[self.rank :: self.world][: self._share]
        for index in mine[start:]:
            yield epoch, index

    def _order(self, epoch: int) -> list[int]:
        """All indices of an epoch, filled up so that each process gets the same number."""
        total = math.ceil(self.length / self.world) * self.world
        if not self.shuffle:
            indices = range(self.length) if self.order is None else self.order
            return [*indices, *[PADDING] * (total - self.length)]
        generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
        order: list[int] = torch.randperm(self.length, generator=generator).tolist()
        return [order[i % self.length] for i in range(total)]


def stratified_order(labels: npt.NDArray[np.int64], seed: int) -> list[int]:
    """A random order of N images of which every beginning has nearly the same share of each class.

    Args:
        labels: class index of each image, [N].
        seed: the only source of randomness.
    """
    generator = np.random.default_rng(seed_of(seed, "stratified order"))
    positions = np.empty(len(labels))
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        ranks = generator.permutation(len(members)) + generator.random(len(members))
        positions[members] = ranks / len(members)
    order: list[int] = np.argsort(positions, kind="stable").tolist()
    return order
