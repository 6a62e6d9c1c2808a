"""Decoding all images of a set once, with a progress bar."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from graft.data.bands import Levels
from graft.data.images import ImageSet
from graft.data.parcels import pack
from graft.data.preprocessing import Preprocessing
from graft.data.transforms import Picture, eval_transform, pixel_type
from graft.data.unreadable import UnreadableImages
from graft.data.workers import batches_of
from graft.errors import GraftError
from graft.system.cpu import available_cores

SMALL_SIDE = 64
MANY = 4096
"""Number of images of at most SMALL_SIDE pixels a side from which on processes decode instead of threads, because
decoding small images is mostly Python code."""

CHUNK_BYTES = 1 << 18
"""Bytes of decoded pixels that a process sends at a time; small, because they are in shared memory."""


def decode_resident(
    images: ImageSet, preprocessing: Preprocessing, *, what: str = "images", only: Sequence[int] | None = None
) -> Levels:
    """All images, resized and cropped as in evaluation: uint8 or uint16 [N, H, W, C].

    Args:
        images: the images.
        preprocessing: resizing and cropping.
        what: name of the images in the progress bar.
        only: indices of the images to decode; the rows of the others are zero. None: all.

    Raises:
        UnreadableImage: an image cannot be read; names the file.
    """
    return decode_readable(images, preprocessing, None, what=what, only=only)[0]


def decode_readable(
    images: ImageSet,
    preprocessing: Preprocessing,
    unreadable: UnreadableImages | None,
    *,
    what: str = "images",
    only: Sequence[int] | None = None,
    timeout: float | None = None,
) -> tuple[Levels, list[int]]:
    """(images as from `decode_resident`, rows of unreadable images, which are zero).

    Args:
        images, preprocessing, what, only: as in `decode_resident`.
        unreadable: records unreadable images; None: they are an error.
        timeout: seconds that a worker process may take for a chunk; None: no limit.

    Raises:
        UnreadableImage: an image cannot be read, and `unreadable` is None; names the file.
        DataError: a worker process was killed, or sent nothing for `timeout` seconds.
    """
    size, image_format = preprocessing.size, preprocessing.image_format
    if image_format.is_rgb and images.pixels is not None and images.pixels.shape[1:3] == size == preprocessing.box:
        return images.pixels, []
    with torch.inference_mode(False):  # Lightning requests loaders in inference mode
        dtype = np.uint8 if image_format.bits == 8 else np.uint16
        pixels: Levels = np.zeros((len(images), *size, image_format.channels), dtype=dtype)
    rows = list(range(len(images)) if only is None else only)
    decoder = _Decoder(images, preprocessing, unreadable, rows)
    failed_rows: list[int] = []
    with contextlib.closing(Progress(what, len(rows))) as bar:
        done = 0
        for chunk, (decoded, failed) in zip(decoder.chunks, decoder.run(timeout), strict=True):
            pixels[chunk] = decoded.numpy()
            failed_rows += failed
            done += len(chunk)
            bar.update(done)
    return pixels, sorted(failed_rows)


class _Decoder(Dataset[tuple[Tensor, list[int]] | GraftError]):
    """Decodes `rows` of `images` in chunks.

    An item is (images [n, H, W, C], its unreadable rows), or an error, which a worker process cannot raise unchanged.
    """

    def __init__(
        self, images: ImageSet, preprocessing: Preprocessing, unreadable: UnreadableImages | None, rows: Sequence[int]
    ) -> None:
        self.images, self.unreadable, self.size = images, unreadable, preprocessing.size
        self.channels, self.dtype = preprocessing.image_format.channels, pixel_type(preprocessing.image_format)
        self.transform = eval_transform(preprocessing)
        cores = available_cores()
        self.processes = cores if max(self.size) <= SMALL_SIDE and len(rows) >= MANY and cores > 1 else 0
        pixel_bytes = self.channels * self.dtype.itemsize
        count = max(1, CHUNK_BYTES // (pixel_bytes * math.prod(self.size))) if self.processes else 1
        self.chunks = [rows[start : start + count] for start in range(0, len(rows), count)]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> tuple[Tensor, list[int]] | GraftError:
        chunk = self.chunks[number]
        decoded = torch.zeros(len(chunk), *self.size, self.channels, dtype=self.dtype)
        failed = []
        for position, index in enumerate(chunk):
            try:
                picture = self._load(index)
            except GraftError as error:
                return error
            if picture is None:
                failed.append(index)
            else:
                decoded[position] = self.transform(picture).permute(1, 2, 0)
        return decoded, failed

    def run(self, timeout: float | None) -> Iterator[tuple[Tensor, list[int]]]:
        """All chunks, in order; raises as `decode_readable`."""
        if self.processes:
            loader = DataLoader(
                self,
                batch_size=None,
                num_workers=self.processes,
                collate_fn=pack,
                # its own generator: a loader without one draws from the global generator
                generator=torch.Generator().manual_seed(0),
            )
            yield from batches_of(lambda: iter(loader), self.processes, timeout)
            return
        with ThreadPoolExecutor(available_cores(), "decode") as pool:
            for item in pool.map(self.__getitem__, range(len(self))):
                if isinstance(item, GraftError):
                    raise item
                yield item

    def _load(self, index: int) -> Picture | None:
        if self.unreadable is None:
            return self.images.load(index)
        return self.unreadable.load(self.images, index, replace=False)[0]


class Progress:
    """A progress bar on stderr, shown on a terminal after PATIENCE seconds."""

    PATIENCE = 1.0

    def __init__(self, what: str, total: int) -> None:
        from rich.progress import Progress

        from graft.system.terminal import PlainConsole

        console = PlainConsole(stderr=True)
        self.bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(f"decoding {what}", total=total)
        self.due: float | None = time.monotonic() + self.PATIENCE

    def update(self, done: int) -> None:
        """Set the number of decoded images."""
        self.bar.update(self.task, completed=done)
        if self.due is not None and time.monotonic() > self.due:
            self.due = None
            self.bar.start()

    def close(self) -> None:
        """Remove the bar."""
        self.bar.stop()
