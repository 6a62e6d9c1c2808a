"""The figure of a search for a learning rate: loss against learning rate."""

from typing import TYPE_CHECKING

from PIL import Image

from graft.review.drawing import new_figure, put_heading, rendered, style

if TYPE_CHECKING:
    from graft.learning.lr_finder import Curve

WIDTH, HEIGHT = 720, 460
HEADROOM = 1.5
"""The axis of the loss ends at this many times its first smoothed value: a divergence would flatten the rest."""


def draw_rates(curve: "Curve", configured: float) -> Image.Image:
    """Loss against optimizer.lr, with the suggestion, the steepest descent and the configured value as lines.

    Args:
        curve: of the search.
        configured: optimizer.lr.
    """
    marks = (
        ("suggestion", curve.halfway, "#2a7f3f", "-"),
        ("steepest descent", curve.steepest, "#3b78b8", "--"),
        ("configured", configured, "#888888", ":"),
    )
    with style(()):
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.add_axes((0.1, 0.13, 0.86, 0.72))
        axes.plot(curve.rates, curve.losses, color="#bbbbbb", linewidth=0.8, label="loss of the step")
        axes.plot(curve.rates, curve.smoothed, color="black", linewidth=1.6, label="smoothed")
        for label, rate, colour, line in marks:
            if rate is not None:
                axes.axvline(rate, color=colour, linestyle=line, label=f"{label} {rate:.2g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("optimizer.lr")
        axes.set_ylabel("train/loss")
        if curve.smoothed:
            axes.set_ylim(0, HEADROOM * curve.smoothed[0])
            axes.set_xlim(curve.rates[0], max(curve.rates[-1], curve.rates[0] * 1.01))
        axes.legend(fontsize=8, frameon=False)
        put_heading(figure, f"Loss while the learning rate rises\n{len(curve.rates)} steps")
        return rendered(figure)
