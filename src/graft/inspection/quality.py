"""How an image is taken: dark, over-exposed, blurred, pale or grey, measured on a small copy of it.

The checks are those of cleanvision (CleanLab 2022); measures and limits are Graft's own, chosen on the flower
photographs and on ants and bees (docs/improve.md).
"""

from dataclasses import astuple, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 256
"""Longest side of the copy that is measured, in pixels: about what a network sees, so that blur counts that matters."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Measures of an image.

    Attributes:
        highlights: 99th percentile of the largest channel of each pixel, in [0, 1], so that saturated red is not dark.
        shadows: 5th percentile of the brightness, in [0, 1].
        contrast: difference of the 98th and the 2nd percentile, of the channel where it is largest, in [0, 1].
        sharpness: 99th percentile of the Laplacian's size, divided by the difference of the percentiles of brightness;
            a sharp subject before a blurred background is sharp.
        colour: mean difference of the largest and the smallest channel of a pixel, in [0, 1]; 0 for grey.
    """

    highlights: float
    shadows: float
    contrast: float
    sharpness: float
    colour: float

    @classmethod
    def of(cls, rgb: Image.Image) -> Self:
        """The measures of an RGB image."""
        small = rgb.reduce(factor) if (factor := max(rgb.size) // SIDE) > 1 else rgb
        if max(small.size) > SIDE:
            small = small.copy()
            small.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, dtype=np.float32) / 255
        grey = np.asarray(small.convert("L"), dtype=np.float32) / 255
        largest = pixels.max(axis=2)
        low, high = np.quantile(pixels, (0.02, 0.98), axis=(0, 1))
        dark, shadows, light = np.quantile(grey, (0.02, 0.05, 0.98)).tolist()
        return cls(
            highlights=float(np.quantile(largest, 0.99)),
            shadows=shadows,
            contrast=float((high - low).max()),
            sharpness=_edges(grey) / max(light - dark, 0.02),
            colour=float((largest - pixels.min(axis=2)).mean()),
        )

    def values(self) -> tuple[float, ...]:
        """The measures in the order of the attributes."""
        return astuple(self)


COUNT = 5
"""Number of measures."""


def _edges(grey: npt.NDArray[np.floating[Any]]) -> float:
    """99th percentile of the size of the Laplacian of brightness; 0 for images of less than 3 pixels on a side."""
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.quantile(np.abs(around - 4 * grey[1:-1, 1:-1]), 0.99))
