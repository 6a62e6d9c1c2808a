"""A loss: focal loss, which attends to the images that are classified worst."""

import torch
from torch import Tensor, nn


class FocalLoss(nn.Module):
    """Cross-entropy with each term weighted by (1 - p)^gamma (Lin et al. 2017, "Focal Loss for Dense
    Object Detection").

    Args:
        gamma: 0 is cross-entropy; the larger, the less a confident, correct prediction counts.
        weight: a factor per class, [C]; Graft supplies it from loss.class_weights because there is an argument of this
            name.

    Raises:
        ValueError: `gamma` is negative.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: must be at least 0")
        self.gamma = gamma
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The weighted mean over the batch.

        Args:
            logits: float32 [B, C].
            targets: class indices [B], or class probabilities [B, C], which MixUp and CutMix give.
        """
        if targets.ndim == 1:
            targets = nn.functional.one_hot(targets, logits.shape[1]).to(logits)
        if self.weight is not None:
            targets = targets * self.weight
        log_probabilities = logits.log_softmax(1)
        terms = (1 - log_probabilities.exp()).pow(self.gamma) * log_probabilities
        return -torch.sum(targets * terms) / targets.sum()
