"""Figures of a run's best epoch: the confusion matrix, accuracy per class, calibration.

A figure is a function, named by `review.figures.NAME._target_` and shown in TensorBoard as `visuals/NAME`:

    def confidence(predictions: Predictions, classes: Sequence[str], bins: int = 20) -> Figure | None:
        figure, axes = matplotlib.pyplot.subplots()
        axes.hist(predictions.confidence, bins)
        return figure

It gets the predictions of all validation images (`graft.learning.predictions.Predictions`), the names of the classes
and its own arguments, which are the other keys of `review.figures.NAME`; if it takes an argument `caption`, also a line
that says which predictions these are. It returns a matplotlib figure, a PIL image, or None for no figure.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from graft.learning.predictions import Array, Calibration, Predictions
from graft.review.drawing import (
    FAINT,
    HEAD,
    INK,
    WRONG,
    heading_width,
    new_figure,
    put_heading,
    rendered,
    shortened,
    style,
)

NAMED, NUMBERED = 60, 30
"""Largest number of classes whose rows and columns are named, and whose cells have numbers."""

BLUE = "#3b78b8"

BARS, BAR, NUMBERS = 40, 340, 110
"""Largest number of bars (of more classes the lowest), and the widths of a full bar and of its numbers in pixels."""

MOST_CONFUSED = 12
"""Pairs of classes listed next to a matrix without numbers."""


MOST_CLASSES = 2000
"""A confusion matrix of more classes is not drawn: less than a pixel per class, and its square in memory."""


def confusion(predictions: Predictions, classes: Sequence[str], caption: str = "") -> Image.Image | None:
    """The confusion matrix, of at most 2,000 classes."""
    if len(classes) > MOST_CLASSES:
        return None
    return draw_confusion(predictions.confusion(len(classes)), classes, f"Confusion matrix\n{caption}")


def accuracy_per_class(predictions: Predictions, classes: Sequence[str], caption: str = "") -> Image.Image:
    """One bar per class: accuracy and number of images."""
    correct, totals = predictions.per_class(len(classes))
    return draw_accuracy(correct, totals, classes, f"Accuracy per class\n{caption}")


def calibration(predictions: Predictions, classes: Sequence[str], caption: str = "") -> Image.Image:
    """Accuracy against confidence."""
    return draw_calibration(predictions.calibration(), f"Calibration\n{caption}")


def draw_confusion(confusion: Array, classes: Sequence[str], heading: str) -> Image.Image:
    """A confusion matrix: true classes in rows, predicted ones in columns, shaded by the share of the true class.

    Up to 30 classes have the number of images in each cell, up to 60 have names, more have a list of the pairs that are
    confused most. At most about 1,000 pixels wide, regardless of the number of classes.
    """
    count = len(classes)
    totals = confusion.sum(axis=1, keepdims=True)
    share = confusion / np.maximum(totals, 1)
    names = [f"{shortened(name, 24)}" for name in classes]
    longest = 7 * max(len(name) for name in names)
    inner = int(np.clip(44 * count, 240, 720))
    listed, named = count > NUMBERED, count <= NAMED
    upright = longest > inner / count
    left, below = (longest + 40, (longest if upright else 20) + 34) if named else (64, 50)
    width = max(left + inner + 110 + (300 if listed else 0), heading_width(heading))
    height = HEAD + 16 + inner + below
    with style([heading, *names]):
        figure = new_figure(width, height)
        put_heading(figure, heading)
        axes = figure.add_axes((left / width, below / height, inner / width, inner / height))
        picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if count < 200 else None)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.spines[:].set_visible(False)
        if named:
            size = 9 if count <= NUMBERED else 7
            axes.set_xticks(range(count), names, rotation=90 if upright else 0, fontsize=size)
            axes.set_yticks(range(count), names, fontsize=size)
            axes.tick_params(length=0)
        if not listed:
            size = 9 if count <= 16 else 7
            for row, column in zip(*np.nonzero(confusion), strict=True):
                shade = "white" if share[row, column] > 0.55 else INK
                axes.text(column, row, f"{confusion[row, column]:,}", ha="center", va="center", fontsize=size,
                          color=shade)  # fmt: skip
        bar = figure.add_axes(((left + inner + 18) / width, below / height, 12 / width, inner / height))
        figure.colorbar(picture, cax=bar, format=lambda value, _: f"{100 * value:.0f} %")
        bar.set_title("of the true class", fontsize=7, loc="left")
        if listed:
            lines = ["most often confused", "", *most_confused(confusion, classes)]
            figure.text((left + inner + 90) / width, (below + inner) / height, "\n".join(lines), va="top",
                        fontsize=8, linespacing=1.6)  # fmt: skip
        return rendered(figure)


def most_confused(confusion: Array, classes: Sequence[str], count: int = MOST_CONFUSED) -> list[str]:
    """The most frequent confusions as lines `12 × wolf as husky` (true as predicted), the most frequent first."""
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    pairs = [divmod(int(cell), len(classes)) for cell in order if off.flat[cell]]
    return [f"{off[t, p]:,} × {shortened(classes[t], 18)} as {shortened(classes[p], 18)}" for t, p in pairs]


def draw_accuracy(correct: Array, totals: Array, classes: Sequence[str], heading: str) -> Image.Image:
    """One bar per class with its accuracy and number of images, and a line at the overall accuracy.

    In the order of the classes; of more than 40 classes the 40 least accurate, lowest first.

    Args:
        correct, totals: number of correctly predicted images of each class, and of all its images, [C].
        classes: their names.
        heading: see `put_heading`.
    """
    with np.errstate(invalid="ignore"):
        accuracy = correct / totals
    numbers = [
        f"{score:.3f}  of {total:,}" if total else "no images" for score, total in zip(accuracy, totals, strict=True)
    ]
    mean = float(correct.sum() / max(1, totals.sum()))
    return draw_bars(accuracy, classes, numbers, heading, ("accuracy", "classes"), ("all", mean), NUMBERS)


def draw_bars(
    values: Array,
    classes: Sequence[str],
    numbers: Sequence[str],
    heading: str,
    names: tuple[str, str],
    line: tuple[str, float],
    margin: int,
) -> Image.Image:
    """One bar per class, in their order; of more than 40 the 40 lowest, lowest first.

    Args:
        values: in [0, 1], NaN where undefined, [C].
        classes: names of the C classes.
        numbers: text next to each bar.
        heading: see `put_heading`.
        names: of the values, and of the classes in general.
        line: name and position of the dashed line.
        margin: width of the texts, in pixels.
    """
    shown = np.arange(len(classes))
    if len(classes) > BARS:
        heading += f" · the {BARS} lowest of {len(classes)} {names[1]}"
        shown = np.argsort(np.nan_to_num(values, nan=2.0), kind="stable")[:BARS]
    ticks = [shortened(classes[i], 32) for i in shown.tolist()]
    left, below, inner = 7 * max(len(tick) for tick in ticks) + 30, 50, 24 * len(shown)
    width, height = max(left + BAR + margin, heading_width(heading)), HEAD + 20 + inner + below
    with style([heading, *ticks]):
        figure = new_figure(width, height)
        put_heading(figure, heading)
        axes = figure.add_axes((left / width, below / height, BAR / width, inner / height))
        axes.barh(range(len(shown)), np.nan_to_num(values[shown]), color=BLUE, height=0.72)
        axes.axvline(line[1], color=WRONG, linewidth=1, linestyle="--")
        axes.text(line[1], -0.6, f"{line[0]}: {line[1]:.3f}", color=WRONG, fontsize=8, ha="center", va="bottom")
        for row, i in enumerate(shown.tolist()):
            axes.text(1.01, row, numbers[i], va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), ticks)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(names[0])
        return rendered(figure)


def draw_calibration(calibration: Calibration, heading: str) -> Image.Image:
    """Accuracy against confidence per bin, with the gap to the diagonal, above the number of images in each bin."""
    bins = len(calibration.counts)
    centres = (np.arange(bins) + 0.5) / bins
    filled = calibration.counts > 0
    accuracy, confidence = calibration.accuracy[filled], calibration.confidence[filled]
    heading += f" · expected calibration error (ECE) {calibration.error:.3f}"
    width, height = max(540, heading_width(heading)), 580
    with style([heading]):
        figure = new_figure(width, height)
        put_heading(figure, heading)
        left, inner = 54 / width, 1 - 74 / width
        lower = figure.add_axes((left, 44 / height, inner, 90 / height))
        upper = figure.add_axes((left, 158 / height, inner, 1 - (HEAD + 170) / height), xlim=(0, 1))
        upper.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1, label="perfect calibration")
        upper.bar(centres[filled], accuracy, 0.9 / bins, color=BLUE, label="accuracy")
        upper.bar(centres[filled], confidence - accuracy, 0.9 / bins, accuracy, color="none", edgecolor=WRONG,
                  hatch="////", linewidth=0.8, label="gap to the mean confidence")  # fmt: skip
        upper.set_ylim(0, 1.02)
        upper.set_ylabel("accuracy")
        upper.legend(loc="upper left", frameon=False, fontsize=8)
        lower.bar(centres, calibration.counts, 0.9 / bins, color=FAINT)
        lower.set_xlim(0, 1)
        lower.set_ylabel("images")
        lower.set_xlabel("confidence")
        return rendered(figure)
