"""A loss: cross-entropy with a term that keeps attending to images that are already classified correctly."""

import torch
from torch import Tensor, nn


class PolyLoss(nn.Module):
    """Cross-entropy plus epsilon times 1 - p of the true class (Leng et al. 2022, "PolyLoss", Poly-1).

    Args:
        epsilon: 0 is cross-entropy; below 0, confident predictions count less.
        weight: a factor per class, [C]; Graft supplies it from loss.class_weights because there is an argument of this
            name.

    Raises:
        ValueError: `epsilon` is below -1, which would reward wrong predictions.
    """

    weight: Tensor | None

    def __init__(self, epsilon: float = 1.0, weight: Tensor | None = None) -> None:
        super().__init__()
        if epsilon < -1:
            raise ValueError(f"epsilon={epsilon}: must be at least -1")
        self.epsilon = epsilon
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
        terms = self.epsilon * (1 - log_probabilities.exp()) - log_probabilities
        return torch.sum(targets * terms) / targets.sum()
