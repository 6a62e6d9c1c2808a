"""What validation and test count while they look at images, without once waiting for the device."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.data.sampler import PADDING
from graft.errors import DataError


@dataclass(frozen=True)
class Counts:
    """What an evaluation has counted, over all processes.

    Attributes:
        loss: summed over the images.
        images, right, taken_for: for each of the C classes how many images it has, how many of them were recognised,
            and how many of any class were taken for it.
    """

    loss: float
    images: tuple[int, ...]
    right: tuple[int, ...]
    taken_for: tuple[int, ...]

    @property
    def mean_loss(self) -> float:
        return self.loss / sum(self.images)

    @property
    def accuracy(self) -> float:
        return sum(self.right) / sum(self.images)

    def figures(self, split: str) -> dict[str, float]:
        """Loss and accuracy under the names of a split; raises DataError where there was no image."""
        if not sum(self.images):
            raise DataError(f"none of the {split} images can be read any more.")
        return {f"{split}/loss": self.mean_loss, f"{split}/acc": self.accuracy}

    def per_class(self) -> list[float]:
        """The accuracy on the images of each class; 0 where it has none."""
        return [right / max(1, images) for right, images in zip(self.right, self.images, strict=True)]


class Tally:
    """Counts on the device and is read once: torchmetrics asks a GPU several things in every batch.

    Args:
        classes: how many.
        device: where the logits are.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self._classes = torch.arange(classes, device=device)
        self._loss = torch.zeros(1, dtype=widest(device), device=device)
        self._counts = torch.zeros(3, classes, dtype=torch.int64, device=device)

    def count(self, logits: Tensor, labels: Tensor, loss: Tensor | None = None) -> None:
        """One batch: logits float32 [B, C], labels [B], which PADDING excludes, and the loss summed over its images; by
        default the cross-entropy."""
        if loss is None:
            loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=PADDING)
        self._loss += loss
        of_class = labels[:, None] == self._classes
        taken_for = (logits.argmax(1)[:, None] == self._classes) & (labels != PADDING)[:, None]
        self._counts += torch.stack([of_class, of_class & taken_for, taken_for]).sum(1)

    def read(self, over_processes: Callable[[Tensor], Tensor]) -> Counts:
        """The sums of all processes, given what adds a tensor up over them."""
        sums = over_processes(torch.cat([self._loss, self._counts.flatten().to(self._loss.dtype)]))
        loss, *counts = sums.tolist()
        classes = len(self._classes)
        images, right, taken_for = (tuple(map(int, counts[row * classes :][:classes])) for row in range(3))
        return Counts(loss, images, right, taken_for)


def widest(device: torch.device) -> torch.dtype:
    """The float with the most digits that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64
