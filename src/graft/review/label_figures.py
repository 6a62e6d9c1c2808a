"""Figures of a run on images with several labels: the scores of each label."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from graft.learning.label_scores import LabelScores
from graft.learning.predictions import LabelPredictions
from graft.review.figures import draw_bars

NUMBERS = 330
"""Width of the numbers next to a bar, in pixels."""


def scores_per_label(predictions: LabelPredictions, classes: Sequence[str], caption: str = "") -> Image.Image:
    """One bar per label: F1 at its threshold, average precision, and the numbers of images."""
    return draw_label_scores(predictions.scored, classes, f"F1 per label\n{caption}")


def draw_label_scores(scores: LabelScores, classes: Sequence[str], heading: str) -> Image.Image:
    """One bar per label with its F1, and a line at the mean; of more than 40 labels the 40 with the lowest F1.

    Args:
        scores: of the images.
        classes: names of the labels.
        heading: see `put_heading`.
    """
    f1 = np.array([np.nan if each is None else each for each in scores.f1()])
    numbers = [_numbers(scores, label, value) for label, value in enumerate(f1.tolist())]
    mean = float(np.nanmean(f1)) if not np.isnan(f1).all() else 0.0
    return draw_bars(f1, classes, numbers, heading, ("F1", "labels"), ("mean", mean), NUMBERS)


def _numbers(scores: LabelScores, label: int, f1: float) -> str:
    precision = scores.average_precision[label]
    if precision is None:
        return f"no images, {scores.predicted[label]:,} predicted"
    return (
        f"{f1:.3f}  AP {precision:.3f}  {scores.correct[label]:,} of {scores.images[label]:,} found, "
        f"{scores.predicted[label]:,} predicted"
    )
