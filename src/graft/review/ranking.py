"""From the logits of a network or an ensemble to the predictions of a batch, for each task."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from graft.config.task import MULTI_LABEL
from graft.learning.ensemble import Ensemble
from graft.learning.inference import most_probable
from graft.review.predictions import Prediction, rank, rank_labels


def ranked(
    ensemble: Ensemble, images: Sequence[str], logits: Tensor, topk: int, labels: Tensor | None = None
) -> Iterator[Prediction]:
    """The predictions of a batch.

    Args:
        ensemble: that gave the logits.
        images: B names.
        logits: float32 [B, C].
        topk: number of classes of each image.
        labels: of the images, if known: [B] or [B, C], see `graft.data.datasets.Batch`.
    """
    true = None if labels is None else labels.tolist()
    if ensemble.decisions.task is MULTI_LABEL:
        assert ensemble.thresholds is not None
        probabilities = ensemble.decisions.probabilities(logits).tolist()
        return rank_labels(images, probabilities, ensemble.classes, ensemble.thresholds, topk, true)
    best, indices = most_probable(logits, topk)
    return rank(images, best.tolist(), indices.tolist(), ensemble.classes, true)
