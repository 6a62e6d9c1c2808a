"""Pictures as batches; what chance does to one is a pure function of (seed, epoch, index)."""

import contextlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from graft.chance import seed_of, seeded
from graft.data.augment import Augment
from graft.data.cores import available_cores
from graft.data.held import HeldImages
from graft.data.images import ImageSet
from graft.data.lost import LostImages
from graft.data.sampler import PADDING
from graft.data.transforms import Transform, eval_transform
from graft.errors import GraftError
from graft.preprocessing import Preprocessing

Sample = tuple[Tensor, int, int]
"""(image, label, index) as in a Batch, but of one picture."""

Key = tuple[int, int] | int
"""(epoch, index); an index alone counts as of epoch 0."""

Draws = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]
"""What chance gives each of N pictures, down and across: (offsets, flips), each [N, 1]."""


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
        transform: PIL RGB → uint8 [3, S, S]; draws from torch's global generator, if from any.
        size: S.
        seed: seeds that generator, together with epoch and index; outside it goes on undisturbed.
        lost: what becomes of a picture that cannot be read; None: an error.
        replace: whether another takes its place, as in training, or nothing, as in evaluation.
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
    ) -> None:
        self.images, self.transform, self.size, self.seed = images, transform, size, seed
        self.lost, self.replace = lost, replace

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Sample:
        epoch, place = _pair(key)
        picture, index = self._load(place)
        if picture is None:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), PADDING, PADDING
        with seeded(self.seed, "augment", epoch, place):
            return self.transform(picture), int(self.images.labels[index]), index

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
            with contextlib.closing(_Progress("training images", len(self.images))) as bar:
                for done in self.images.decode():
                    bar.update(done)

    def _load(self, index: int) -> tuple[Image.Image | None, int]:
        if index == PADDING:
            return None, PADDING
        if self.lost is None:
            return self.images.load(index), index
        return self.lost.load(self.images, index, replace=self.replace)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of a FileDataset as a Batch."""
    images, labels, indices = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(labels), torch.tensor(indices))


class ResidentDataset(Dataset[Batch]):
    """All pictures decoded once and held in memory; a whole batch is cropped and flipped at once.

    Args:
        pixels: uint8 [N, S, S, 3], as evaluation sees them.
        labels: int64 [N]; PADDING for pictures that count nowhere.
        augment: flips and padded crops; None for evaluation.
        seed: with the epoch, decides a table of every picture's offsets and flips.
    """

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        *,
        augment: Augment | None,
        seed: int,
    ) -> None:
        if augment is not None and not augment.batchable:
            raise ValueError("only flips and padded crops can be done to whole batches")
        self.pixels, self.labels, self.seed = np.ascontiguousarray(pixels), labels, seed
        self.augment = None if augment == Augment() else augment
        self._table: tuple[int, Draws] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The batch of these (epoch, index) pairs, all of one epoch."""
        epoch, indices = epoch_and_indices(keys)
        padding = indices == PADDING
        rows = np.where(padding, 0, indices)
        images = self.pixels[rows] if self.augment is None else self._augmented(epoch, rows)
        images[padding] = 0
        labels = np.where(padding, PADDING, self.labels[rows])
        indices[labels == PADDING] = PADDING  # of a picture that was lost, too
        # NumPy, because a thread team costs more than it gains here; channels last is what convolutions like
        return Batch(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels), torch.from_numpy(indices))

    def _augmented(self, epoch: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Crop and flip by looking each output pixel's row and column up in the picture."""
        size = self.pixels.shape[1]
        ys, xs = (_positions(offsets[rows], flips[rows], size) for offsets, flips in self._draws(epoch))
        source = (rows[:, None, None] * size + ys[:, :, None]) * size + xs[:, None, :]  # [B, S, S]
        return self.pixels.reshape(-1, 3).take(source, axis=0)

    def _draws(self, epoch: int) -> Draws:
        if self._table is None or self._table[0] != epoch:
            self._table = epoch, self._draw(epoch)
        return self._table[1]

    def _draw(self, epoch: int) -> Draws:
        assert self.augment is not None
        generator = torch.Generator().manual_seed(seed_of(self.seed, "augment", epoch))
        count, padding = len(self), self.augment.random_crop_padding or 0
        return [
            (
                torch.randint(-padding, padding + 1, (count, 1), generator=generator).numpy(),
                (torch.rand(count, 1, generator=generator) < flip).numpy(),
            )
            for flip in (self.augment.vertical_flip, self.augment.horizontal_flip)
        ]


def _positions(offsets: npt.NDArray[np.int64], flips: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.int64]:
    """Which of `size` source positions each output position shows, mirrored at the border: [B, size]."""
    straight = np.arange(size)
    positions = np.where(flips, size - 1 - straight, straight) + offsets
    period = max(2 * (size - 1), 1)
    folded = positions % period
    return np.where(folded < size, folded, period - folded)


def decode_resident(
    images: ImageSet, preprocessing: Preprocessing, *, what: str = "images", only: Sequence[int] | None = None
) -> npt.NDArray[np.uint8]:
    """All pictures as evaluation sees them, uint8 [N, S, S, 3]; with threads, and a progress bar on a
    terminal. With `only`, nothing is known of the others.

    Raises:
        UnreadableImage: a picture cannot be read; names the file.
    """
    return decode_readable(images, preprocessing, None, what=what, only=only)[0]


def decode_readable(
    images: ImageSet,
    preprocessing: Preprocessing,
    lost: LostImages | None,
    *,
    what: str = "images",
    only: Sequence[int] | None = None,
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """(pictures as `decode_resident` gives them, rows of those that cannot be read); black in these rows.

    Raises:
        UnreadableImage: a picture cannot be read, and `lost` is None; names the file.
    """
    size = preprocessing.input_size
    if images.pixels is not None and images.pixels.shape[1:3] == (size, size) == (preprocessing.resize_size,) * 2:
        return images.pixels, []
    transform = eval_transform(preprocessing)
    with torch.inference_mode(False):  # Lightning asks for loaders in inference mode; training uses these pixels too
        pixels = np.zeros((len(images), size, size, 3), dtype=np.uint8)
    unread: list[int] = []

    def decode(index: int) -> None:
        if lost is None:
            picture: Image.Image | None = images.load(index)
        else:
            picture, _ = lost.load(images, index, replace=False)
        if picture is None:
            unread.append(index)
        else:
            pixels[index] = transform(picture).permute(1, 2, 0).numpy()

    rows = range(len(images)) if only is None else only
    with (
        ThreadPoolExecutor(available_cores(), "decode") as pool,
        contextlib.closing(_Progress(what, len(rows))) as bar,
    ):
        for done, _ in enumerate(pool.map(decode, rows, chunksize=1), 1):
            bar.update(done)
    return pixels, sorted(unread)


class _Progress:
    """A bar on stderr, on a terminal, once the work has taken a second."""

    PATIENCE = 1.0

    def __init__(self, what: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(f"decoding {what}", total=total)
        self.due: float | None = time.monotonic() + self.PATIENCE

    def update(self, done: int) -> None:
        """`done` pictures are decoded."""
        self.bar.update(self.task, completed=done)
        if self.due is not None and time.monotonic() > self.due:
            self.due = None
            self.bar.start()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()


def epoch_and_indices(keys: Sequence[Key]) -> tuple[int, npt.NDArray[np.int64]]:
    """The one epoch that all of a batch's keys are of, and their indices, int64 [B]."""
    pairs = [_pair(key) for key in keys]
    epoch = pairs[0][0]
    if any(other != epoch for other, _ in pairs):
        raise ValueError("a batch belongs to one epoch")
    return epoch, np.array([index for _, index in pairs], dtype=np.int64)


def _pair(key: Key) -> tuple[int, int]:
    return (0, key) if isinstance(key, int) else key
