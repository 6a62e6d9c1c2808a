"""Figures of a run on images with several labels: the scores of each label."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from graft.learning.label_scores import LabelScores
from graft.learning.predictions import LabelPredictions
from graft.review.drawing import HEAD, WRONG, heading_width, new_figure, put_heading, rendered, shortened, style
from graft.review.figures import BAR, BARS, BLUE

NUMBERS = 330
"""Width of the numbers next to a bar, in pixels."""


def scores_per_label(predictions: LabelPredictions, classes: Sequence[str], caption: str = "") -> Image.Image:
    """One bar per label: F1 at its threshold, average precision, and the numbers of images."""
    return draw_label_scores(predictions.scored(), classes, f"F1 per label\n{caption}")


def draw_label_scores(scores: LabelScores, classes: Sequence[str], heading: str) -> Image.Image:
    """One bar per label with its F1, and a line at the mean; of more than 40 labels the 40 with the lowest F1.

    Args:
        scores: of the images.
        classes: names of the labels.
        heading: see `put_heading`.
    """
    f1 = np.array([np.nan if each is None else each for each in scores.f1()])
    shown = np.arange(len(classes))
    if len(classes) > BARS:
        heading += f" · the {BARS} lowest of {len(classes)} labels"
        shown = np.argsort(np.nan_to_num(f1, nan=2.0), kind="stable")[:BARS]
    names = [shortened(classes[int(i)], 32) for i in shown]
    left, below, inner = 7 * max(len(name) for name in names) + 30, 50, 24 * len(shown)
    width, height = max(left + BAR + NUMBERS, heading_width(heading)), HEAD + 20 + inner + below
    mean = float(np.nanmean(f1)) if not np.isnan(f1).all() else 0.0
    with style([heading, *names]):
        figure = new_figure(width, height)
        put_heading(figure, heading)
        axes = figure.add_axes((left / width, below / height, BAR / width, inner / height))
        axes.barh(range(len(shown)), np.nan_to_num(f1[shown]), color=BLUE, height=0.72)
        axes.axvline(mean, color=WRONG, linewidth=1, linestyle="--")
        axes.text(mean, -0.6, f"mean: {mean:.3f}", color=WRONG, fontsize=8, ha="center", va="bottom")
        for row, i in enumerate(shown.tolist()):
            axes.text(1.01, row, _numbers(scores, i, f1[i]), va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("F1")
        return rendered(figure)


def _numbers(scores: LabelScores, label: int, f1: float) -> str:
    precision = scores.average_precision[label]
    if precision is None:
        return f"no images, {scores.predicted[label]:,} predicted"
    return (
        f"{f1:.3f}  AP {precision:.3f}  {scores.correct[label]:,} of {scores.images[label]:,} found, "
        f"{scores.predicted[label]:,} predicted"
    )
