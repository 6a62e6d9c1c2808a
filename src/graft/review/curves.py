"""Learning curves of a run as one picture: loss and accuracy of training and validation."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image

from graft.review.drawing import FAINT, HEAD, WRONG, heading_width, new_figure, put_heading, rendered, style
from graft.review.figures import BLUE

PANEL, MARGIN, HEIGHT = 430, 56, 400
"""In pixels: width of one panel, distance between panels, height of the picture."""

PANELS = {"loss": "loss", "acc": "accuracy"}
"""Second part of a metric's name -> label of its axis."""

LABEL_PANELS = {"loss": "loss", "f1_micro": "F1 of all decisions", "map": "mean average precision"}
"""The same of images with several labels."""

SPLITS = {"train": (BLUE, "training"), "val": (WRONG, "validation")}

FEW = 30
"""Largest number of points that are marked."""


def curves(rows: Sequence[Mapping[str, float]], name: str, monitored: str, mode: str = "max") -> Image.Image | None:
    """Loss and accuracy of training and validation against the optimizer step, with a line at the best validation.

    Args:
        rows: of metrics.csv, see `graft.learning.metrics_csv`.
        name: of the run, for the heading.
        monitored: the metric whose best value is marked, e.g. "val/acc"; "test/…" marks none.
        mode: "max" or "min", the direction in which it improves.

    Returns:
        None where there is no value to draw.
    """
    panels = PANELS if not any("val/map" in row for row in rows) else LABEL_PANELS
    points = {
        (split, metric): [(row["step"], row[f"{split}/{metric}"]) for row in rows if f"{split}/{metric}" in row]
        for split in SPLITS
        for metric in (*panels, *(f"{metric}_step" for metric in panels))
    }
    if not any(points.values()):
        return None
    heading, best = f"{name}\n{' and '.join(panels.values())} per optimizer step", _best(rows, monitored, mode)
    if best is not None:
        heading += f" · best {monitored} {best[1]:.4f} at step {best[0]:g}"
    width = max(len(panels) * (PANEL + MARGIN) + MARGIN // 2, heading_width(heading))
    with style([heading]):
        figure = new_figure(width, HEIGHT)
        put_heading(figure, heading)
        for number, (metric, label) in enumerate(panels.items()):
            left = (MARGIN + number * (PANEL + MARGIN)) / width
            axes = figure.add_axes((left, 44 / HEIGHT, PANEL / width, 1 - (HEAD + 56) / HEIGHT))
            for split, (colour, title) in SPLITS.items():
                if window := points[split, f"{metric}_step"]:
                    axes.plot(*zip(*window, strict=True), color=colour, alpha=0.25, linewidth=1)
                if whole := points[split, metric]:
                    marker = "o" if len(whole) <= FEW else None
                    axes.plot(*zip(*whole, strict=True), color=colour, label=title, marker=marker, markersize=3)
            if best is not None:
                axes.axvline(best[0], color=FAINT, linestyle="--", linewidth=1)
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            axes.grid(alpha=0.25)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8)
        return rendered(figure)


def _best(rows: Sequence[Mapping[str, float]], monitored: str, mode: str) -> tuple[float, float] | None:
    """(step, value) of the first best value of a validation metric after the start of training."""
    found = [
        (row["step"], row[monitored])
        for row in rows
        if row["step"] > 0 and not math.isnan(row.get(monitored, math.nan))
    ]
    if not found or not monitored.startswith("val/"):
        return None
    sign = 1 if mode == "min" else -1
    return min(found, key=lambda point: sign * point[1])
