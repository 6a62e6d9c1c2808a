"""Pictures decoded once and held in memory at their own size, for augmentation that has to see whole pictures."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft.data.images import ImageSet, opened
from graft.data.transforms import as_pixels
from graft.errors import UnreadableImage
from graft.system.cpu import available_cores

SAMPLE = 256
"""So many headers, at equal distances, tell how large the pictures of a set are."""


def bytes_when_decoded(images: ImageSet) -> int:
    """How much memory the pictures of a set in files take as RGB; of many, an estimate on the safe side."""
    assert images.paths is not None
    step = max(1, len(images) // SAMPLE)
    sizes = [_bytes_of(images.paths[index], images.least) for index in range(0, len(images), step)]
    spare = 1.0 if step == 1 else 1.05
    return round(spare * len(images) * sum(sizes) / max(1, len(sizes)))


def _bytes_of(path: Path, least: int) -> int:
    try:
        with opened(path, least) as picture:
            return 3 * picture.width * picture.height
    except UnreadableImage:
        return 0


class CachedImages:
    """Gives the pictures of an ImageSet, and keeps what it has decoded.

    The pixels lie in one block of memory: worker processes share what was decoded before they began, and keep for
    themselves what they decode.

    Args:
        images: the pictures.
        room: bytes that they may take; what no longer fits is decoded each time.
    """

    def __init__(self, images: ImageSet, room: int) -> None:
        self.images, self.names, self.labels = images, images.names, images.labels
        self._block = torch.empty(room, dtype=torch.uint8)  # memory that is not written to is not taken
        self._used = 0
        # where each begins, its height and width; 0: not held
        self._regions = np.zeros((len(images), 3), dtype=np.int64)
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Tensor:
        """The pixels of picture `index`, upright RGB, uint8 [3, H, W]; not to be written to."""
        begin, height, width = self._regions[index].tolist()
        if height:
            return self._block[begin : begin + 3 * height * width].view(height, width, 3).permute(2, 0, 1)
        pixels = as_pixels(self.images.load(index))
        self._keep(index, pixels)
        return pixels

    def contents(self) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """(the block of pixels, [N, 3]: each picture's first byte in it, height and width; height 0: not held)."""
        return self._block[: self._used], self._regions

    def decode(self) -> Iterator[int]:
        """Decode, with threads, all that is not held yet; yields how many are done. One that cannot be read is left
        for `load` to tell of."""
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
        with self._writing:
            begin, self._used = self._used, self._used + size
            if self._used > len(self._block):
                self._used = begin
                return
        self._block[begin : begin + size] = pixels.permute(1, 2, 0).reshape(-1)
        self._regions[index] = begin, height, width

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "_writing"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._writing = threading.Lock()
