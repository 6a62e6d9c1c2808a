"""Images decoded once and kept in memory at their original size, for augmentation that crops them."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft.data.image_format import ImageFormat
from graft.data.images import ImageSet
from graft.data.reading import size_of
from graft.data.stored import ImageFile
from graft.data.transforms import as_pixels, pixel_type
from graft.errors import UnreadableImage
from graft.system.cpu import available_cores

SAMPLE = 256
"""Number of image headers, evenly spaced, from which the decoded size of a set is estimated."""


def bytes_when_decoded(images: ImageSet) -> int:
    """Bytes that the images of a set in files take in memory; for more than `SAMPLE` images a cautious estimate."""
    step = max(1, len(images) // SAMPLE)
    indices = range(0, len(images), step)
    sizes = [_bytes_of(images.stored[index], images.image_format, images.min_side) for index in indices]
    margin = 1.0 if step == 1 else 1.05
    return round(margin * len(images) * sum(sizes) / max(1, len(sizes)))


def _bytes_of(path: ImageFile, image_format: ImageFormat, min_side: int) -> int:
    try:
        size = size_of(path, image_format, min_side)
    except UnreadableImage:
        return 0
    return image_format.channels * image_format.bits // 8 * size.width * size.height


class CachedImages:
    """An ImageSet whose decoded images are kept in memory.

    The pixels are in one block of memory: worker processes share the images decoded before they started, and each keeps
    the images that it decodes itself.

    Args:
        images: the images.
        max_bytes: size of the block; images that no longer fit are decoded each time.
    """

    def __init__(self, images: ImageSet, max_bytes: int) -> None:
        self.images, self.names, self.labels = images, images.names, images.labels
        dtype, self._channels = pixel_type(images.image_format), images.image_format.channels
        # pages are allocated when they are written to
        self._block = torch.empty(max_bytes // dtype.itemsize, dtype=dtype)
        self._used = 0
        # offset in the block, height and width of each image; height 0: not cached
        self._regions = np.zeros((len(images), 3), dtype=np.int64)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Tensor:
        """The pixels of image `index`, upright, uint8 or uint16 [C, H, W]; must not be modified."""
        start, height, width = self._regions[index].tolist()
        if height:
            count = self._channels * height * width
            return self._block[start : start + count].view(height, width, self._channels).permute(2, 0, 1)
        pixels = as_pixels(self.images.load(index))
        self._keep(index, pixels)
        return pixels

    def reading_ahead(self, indices: Sequence[int]) -> AbstractContextManager[None]:
        """As `ImageSet.reading_ahead`, for the images that are not cached."""
        return self.images.reading_ahead([index for index in indices if not self._regions[index, 1]])

    def contents(self) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """(block of pixels; offset in it, height and width of each image, [N, 3]; height 0: not cached)."""
        return self._block[: self._used], self._regions

    def decode(self) -> Iterator[int]:
        """Decode all images that are not cached, with threads; yields the number done so far.

        Unreadable images are skipped; `load` raises for them.
        """
        missing = np.flatnonzero(self._regions[:, 1] == 0).tolist()
        with ThreadPoolExecutor(available_cores(), "decode") as pool:
            for done, _ in enumerate(pool.map(self._try, missing), 1):
                yield done

    def _try(self, index: int) -> None:
        try:
            self.load(index)
        except UnreadableImage:
            return

    def _keep(self, index: int, pixels: Tensor) -> None:
        size, (_, height, width) = pixels.numel(), pixels.shape
        with self._lock:
            start, self._used = self._used, self._used + size
            if self._used > len(self._block):
                self._used = start
                return
        self._block[start : start + size] = pixels.permute(1, 2, 0).reshape(-1)
        self._regions[index] = start, height, width

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
