"""Confusion counts and loss of a validation or a test, accumulated without synchronising the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.data.sampler import PADDING
from graft.errors import DataError


@dataclass(frozen=True)
class ClassCounts:
    """Counts per class and the summed loss of an evaluation, over all processes.

    Attributes:
        loss: summed over the images.
        images: number of images of each of the C classes.
        correct: number of correctly predicted images of each class.
        predicted: number of images, of any class, that are predicted as each class.
    """

    loss: float
    images: tuple[int, ...]
    correct: tuple[int, ...]
    predicted: tuple[int, ...]

    @property
    def mean_loss(self) -> float:
        """Mean loss per image."""
        return self.loss / sum(self.images)

    @property
    def accuracy(self) -> float:
        """Share of correctly predicted images, in [0, 1]."""
        return sum(self.correct) / sum(self.images)

    def figures(self, split: str) -> dict[str, float]:
        """Loss and accuracy under their metric names ("val/loss", …); raises DataError if there was no image."""
        if not sum(self.images):
            raise DataError(f"none of the {split} images can be read any more.")
        return {f"{split}/loss": self.mean_loss, f"{split}/acc": self.accuracy}

    def per_class(self) -> list[float | None]:
        """Accuracy on the images of each class, in [0, 1]; None for a class without images."""
        pairs = zip(self.correct, self.images, strict=True)
        return [correct / images if images else None for correct, images in pairs]

    def by_class(self, split: str, classes: Sequence[str]) -> dict[str, float]:
        """Accuracy on the images of each class that has some, as "test/acc/CLASS"."""
        pairs = zip(classes, self.per_class(), strict=True)
        return {f"{split}/acc/{name}": accuracy for name, accuracy in pairs if accuracy is not None}

    def collapse(self, classes: Sequence[str]) -> str | None:
        """What is wrong if the network predicts a single class: usually too large a step has broken it."""
        found = [name for name, count in zip(classes, self.predicted, strict=True) if count]
        return f"every validation image is predicted as {found[0]!r}" if len(found) == 1 else None


class EvaluationCounts:
    """Confusion counts and summed loss, accumulated on the device and read once per epoch.

    torchmetrics synchronises with a GPU several times in every batch.

    Args:
        classes: number of classes.
        device: of the logits.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = torch.arange(classes, device=device)
        self._loss = torch.zeros(1, dtype=widest(device), device=device)
        self._counts = torch.zeros(3, classes, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            logits: float32 [B, C].
            labels: class indices [B]; PADDING excludes an image.
            loss: summed over the images; None: the cross-entropy.
        """
        self.add_loss(F.cross_entropy(logits, labels, reduction="sum", ignore_index=PADDING) if loss is None else loss)
        of_class = labels[:, None] == self._classes
        predicted = (logits.argmax(1)[:, None] == self._classes) & (labels != PADDING)[:, None]
        self._counts += torch.stack([of_class, of_class & predicted, predicted]).sum(1)

    def add_loss(self, loss: Tensor) -> None:
        """Add the summed loss of a batch."""
        self._loss += loss

    def compute(
        self, reduce: Callable[[Tensor], Tensor], gather: Callable[[list[Tensor]], Tensor] | None = None
    ) -> ClassCounts:
        """The counts of all processes; `reduce` sums a tensor over them. `gather` is not needed."""
        sums = reduce(torch.cat([self._loss, self._counts.flatten().to(self._loss.dtype)]))
        loss, *counts = sums.tolist()
        classes = len(self._classes)
        images, correct, predicted = (tuple(map(int, counts[row * classes :][:classes])) for row in range(3))
        return ClassCounts(loss, images, correct, predicted)


def widest(device: torch.device) -> torch.dtype:
    """The floating-point type of the highest precision that a device supports."""
    return torch.float32 if device.type == "mps" else torch.float64
