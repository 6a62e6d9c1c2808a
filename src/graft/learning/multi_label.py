"""Losses and metrics of images with several labels, each of which is a decision of its own."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MultilabelAUROC, MultilabelAveragePrecision, MultilabelPrecisionRecallCurve

from graft.learning import classification
from graft.learning.classification import Average, average_over, checked_average


class BinaryCrossEntropy(nn.Module):
    """The cross-entropy of each label's own yes or no, averaged over labels and images.

    It takes class indices, too: each class is then decided on its own (Wightman et al. 2021, "ResNet strikes back").

    Args:
        weight: a factor of each label, [C].
        pos_weight: a factor of the terms of images that have a label, [C]: above 1 for rare labels.
        label_smoothing: pulls the targets 0 and 1 towards 0.5 by this share, in [0, 1).

    Raises:
        ValueError: label smoothing out of its range.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self, weight: Tensor | None = None, pos_weight: Tensor | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be at least 0 and below 1")
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over labels and images.

        Args:
            logits: float32 [B, C].
            targets: zeros and ones or shares [B, C], or class indices [B].
        """
        return self.terms(logits, _shares(targets, logits)).mean()

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The weighted loss of each decision, [B, C]."""
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        weight, positive = (None if each is None else each.to(logits) for each in (self.weight, self.pos_weight))
        return F.binary_cross_entropy_with_logits(logits, targets, weight=weight, pos_weight=positive, reduction="none")


class BinaryFocalLoss(BinaryCrossEntropy):
    """Binary cross-entropy whose terms are multiplied by |target - p|^gamma, so that confident decisions count less.

    With gamma=0 it is `BinaryCrossEntropy`. Lin et al. 2017, "Focal Loss for Dense Object Detection".

    Args:
        gamma: at least 0.
        weight, pos_weight, label_smoothing: as in `BinaryCrossEntropy`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, pos_weight, label_smoothing)
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: must be at least 0")
        self.gamma = gamma

    def terms(self, logits: Tensor, targets: Tensor) -> Tensor:
        terms = super().terms(logits, targets)
        if not self.gamma:
            return terms
        distance = (targets - logits.sigmoid()).abs()
        # without the infinite gradient of a power below 1 at 0
        return terms * distance.clamp(min=torch.finfo(logits.dtype).eps).pow(self.gamma)


def _shares(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets as float [B, C], also of class indices [B]."""
    return (F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets).to(logits)


class LogLoss(classification.LogLoss):
    """Mean of -log p of what is true of each label: the binary cross-entropy, without weights and smoothing."""

    def truth(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        return probabilities.where(labels == 1, 1 - probabilities)


class _OverDefinedLabels(MultilabelPrecisionRecallCurve):
    """Base of a metric that torchmetrics computes for each label, averaged over the labels for which it is defined.

    Args:
        num_labels: C.
        average: "macro" (each label counts the same), "weighted" (by its images) or "none" (a value per label).
        thresholds: None: exact, which keeps N x C probabilities on the device; a number: approximated with this many.
    """

    with_label: Tensor
    images: Tensor

    def __init__(self, num_labels: int, average: Average = "macro", thresholds: int | None = None) -> None:
        super().__init__(num_labels, average="none", thresholds=thresholds)
        self.averaged = checked_average(average)
        self.add_state("with_label", torch.zeros(num_labels, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        super().update(probabilities, labels)
        self.with_label += labels.sum(0)
        self.images += len(labels)

    def compute(self) -> Tensor:  # type: ignore[override]
        """A number in [0, 1], or [C]."""
        scores: Tensor = super().compute()  # type: ignore[assignment]
        return average_over(scores, self.with_label, self.defined(), self.averaged)

    def defined(self) -> Tensor:
        """Whether the metric is defined for each label, [C]: that images have it."""
        return self.with_label > 0


class AUROC(_OverDefinedLabels, MultilabelAUROC):
    """Area under the ROC curve of each label; undefined where all images have it, too."""

    higher_is_better = True

    def defined(self) -> Tensor:
        return super().defined() & (self.with_label < self.images)


class AveragePrecision(_OverDefinedLabels, MultilabelAveragePrecision):
    """Average precision of each label."""

    higher_is_better = True
