"""Classification metrics that torchmetrics lacks, or that it averages over classes without images too.

Each is updated with probabilities [B, C] and class indices [B]. Its value is NaN where it is undefined.
"""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAUROC, MulticlassAveragePrecision, MulticlassPrecisionRecallCurve

Average = Literal["macro", "weighted", "none"]


class LogLoss(Metric):
    """Mean of -log p of the true class: the cross-entropy, without class weights, smoothing or another loss's terms."""

    is_differentiable = True
    higher_is_better = False
    full_state_update = False

    total: Tensor
    decisions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("decisions", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch; a probability of 0 counts as the smallest that its type distinguishes from 1."""
        truth = self.truth(probabilities, labels)
        self.total -= truth.clamp(min=torch.finfo(truth.dtype).eps).log().sum()
        self.decisions += truth.numel()

    def truth(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """The probability of what is true in each decision."""
        return probabilities.gather(1, labels[:, None])

    def compute(self) -> Tensor:
        """At least 0; log C for uniform probabilities."""
        return self.total / self.decisions


class BalancedAccuracy(Metric):
    """Accuracy on each class, averaged over the classes that have images, as scikit-learn defines it.

    torchmetrics' macro average counts a class without images as 0 if an image is predicted as it.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("correct", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        self.images += _count(labels, self.images)
        self.correct += _count(labels[probabilities.argmax(1) == labels], self.images)

    def compute(self) -> Tensor:
        """A number in [0, 1]."""
        return average_over(self.correct / self.images, self.images, self.images > 0, "macro")


class _OverDefinedClasses(MulticlassPrecisionRecallCurve):
    """Base of a metric that torchmetrics computes for each class, averaged over the classes for which it is defined.

    Args:
        num_classes: C.
        average: "macro" (each class counts the same), "weighted" (by its images) or "none" (a value per class).
        thresholds: None: exact, which keeps N x C probabilities on the device; a number: approximated with this many.
    """

    images: Tensor

    def __init__(self, num_classes: int, average: Average = "macro", thresholds: int | None = None) -> None:
        super().__init__(num_classes, average="none", thresholds=thresholds)  # type: ignore[arg-type]
        self.averaged = checked_average(average)
        self.add_state("images", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        super().update(probabilities, labels)
        self.images += _count(labels, self.images)

    def compute(self) -> Tensor:  # type: ignore[override]
        """A number in [0, 1], or [C]."""
        scores: Tensor = super().compute()  # type: ignore[assignment]
        return average_over(scores, self.images, self.defined(), self.averaged)

    def defined(self) -> Tensor:
        """Whether the metric is defined for each class, [C]: that it has images."""
        return self.images > 0


class AUROC(_OverDefinedClasses, MulticlassAUROC):
    """Area under the ROC curve of each class against the others; undefined where all images are of the class, too."""

    higher_is_better = True

    def defined(self) -> Tensor:
        return super().defined() & (self.images < self.images.sum())


class AveragePrecision(_OverDefinedClasses, MulticlassAveragePrecision):
    """Average precision of each class against the others."""

    higher_is_better = True


def checked_average(average: str) -> str:
    if average not in ("macro", "weighted", "none"):
        raise ValueError(f'average={average}: must be "macro", "weighted" or "none"')
    return average


def _count(labels: Tensor, like: Tensor) -> Tensor:
    """Number of `labels` of each class, [C]."""
    return torch.zeros_like(like).scatter_add_(0, labels, torch.ones_like(labels))


def average_over(scores: Tensor, images: Tensor, defined: Tensor, average: str) -> Tensor:
    """The mean of the scores [C] of the classes for which they are defined; NaN without such a class."""
    scores = scores.where(defined, torch.nan)
    if average == "none":
        return scores
    weights = (images if average == "weighted" else torch.ones_like(images)) * defined
    return (scores.nan_to_num() * weights).sum() / weights.sum()
