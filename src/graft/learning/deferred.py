"""Batches of an evaluation, kept on the device and read in blocks, because reading synchronises it."""

from collections.abc import Callable, Sequence

from torch import Tensor

from graft.data.datasets import real_rows

BLOCK = 2**26
"""Bytes of predictions after which they are read."""

Batches = Sequence[tuple[Tensor, Tensor]]


class Deferred:
    """Predictions and labels of batches, passed on in blocks of at least `BLOCK` bytes and at the end.

    Args:
        read: called with the batches of a block, each without padding; it may synchronise the device.
    """

    def __init__(self, read: Callable[[Batches], None]) -> None:
        self.read = read
        self.clear()

    def clear(self) -> None:
        """Forget the batches that were not read yet."""
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._bytes = 0

    def add(self, predictions: Tensor, labels: Tensor) -> None:
        """Add a batch: predictions [B, C] and labels as in `Batch`, of which PADDING excludes an image."""
        self._batches.append((predictions, labels))
        self._bytes += predictions.nbytes
        if self._bytes >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Pass on the batches that were not read yet."""
        batches = [_without_padding(*batch) for batch in self._batches]
        self.clear()
        if batches := [batch for batch in batches if len(batch[1])]:
            self.read(batches)


def _without_padding(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    real = real_rows(labels)
    return (predictions, labels) if real.all() else (predictions[real], labels[real])
