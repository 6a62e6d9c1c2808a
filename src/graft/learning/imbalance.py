"""Losses for classes of unequal size, and class weights from the number of training images of each class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FocalLoss(nn.Module):
    """Cross-entropy whose terms are multiplied by (1 - p)^gamma, so that confident predictions count less.

    With gamma=0 it is torch's CrossEntropyLoss, also with class weights, label smoothing and class probabilities.
    Lin et al. 2017, "Focal Loss for Dense Object Detection".

    Args:
        gamma: at least 0.
        weight: a factor per class, [C].
        label_smoothing: share of each target that is spread evenly over the classes, in [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: must be at least 0")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be at least 0 and at most 1")
        self.gamma, self.label_smoothing = gamma, label_smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch; of class indices, weighted by the weights of their classes.

        Args:
            logits: float32 [B, C].
            targets: class indices [B], or class probabilities [B, C].
        """
        log_probabilities = logits.log_softmax(1)
        weights = torch.ones_like(logits[0]) if self.weight is None else self.weight.to(logits)
        if targets.ndim == 1:
            normaliser = weights[targets].sum()
            targets = F.one_hot(targets, logits.shape[1]).to(logits)
        else:
            normaliser = logits.new_tensor(len(logits))
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        terms = log_probabilities
        if self.gamma:
            # 1 - p, without the infinite gradient of a power below 1 at p = 1
            terms = (-log_probabilities.expm1()).clamp(min=torch.finfo(logits.dtype).eps).pow(self.gamma) * terms
        return -(targets * weights * terms).sum() / normaliser


class LogitAdjustedLoss(nn.Module):
    """Cross-entropy of the logits plus tau times the logarithm of each class's share of the training images.

    The network learns what distinguishes the classes, while the loss accounts for their sizes; predictions are made
    from the logits alone. Menon et al. 2021, "Long-tail learning via logit adjustment".

    Args:
        class_counts: number of training images of each class; a class without images counts as one.
        tau: 0 is cross-entropy, 1 aims at the highest balanced accuracy.
        weight: a factor per class, [C].
        label_smoothing: share of each target that is spread evenly over the classes, in [0, 1].
    """

    adjustment: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        tau: float = 1.0,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        counts = torch.tensor(class_counts, dtype=torch.float64).clamp(min=1)
        self.register_buffer("adjustment", (tau * (counts / counts.sum()).log()).float())
        self.loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=label_smoothing)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch.

        Args:
            logits: float32 [B, C].
            targets: class indices [B], or class probabilities [B, C].
        """
        loss: Tensor = self.loss(logits + self.adjustment, targets)
        return loss


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Weights inversely proportional to the number of images of each class; their mean over the images is 1."""
    return tuple(sum(counts) / (len(counts) * max(1, count)) for count in counts)


def balanced_positive_weights(counts: Sequence[int], images: int) -> tuple[float, ...]:
    """For each label, the number of images without it for each image with it, so that both count the same.

    Args:
        counts: number of training images with each label; a label without images counts as of one.
        images: number of training images; a label that all have counts as if one lacked it.
    """
    return tuple(max(1, images - count) / max(1, count) for count in counts)


def effective_number_weights(counts: Sequence[int], beta: float) -> tuple[float, ...]:
    """Weights inversely proportional to the effective number of images (1 - beta^n) / (1 - beta) of each class.

    Their mean over the classes is 1. Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples".

    Args:
        counts: number of training images of each class; a class without images counts as one.
        beta: in [0, 1); 0 gives equal weights, near 1 those of `balanced_weights`, but for a factor.
    """
    inverse = [(1 - beta) / (1 - beta ** max(1, count)) for count in counts]
    return tuple(each * len(inverse) / sum(inverse) for each in inverse)
