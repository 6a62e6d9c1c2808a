"""Pictures that are dark, over-exposed, pale, blurred, grey, tiny or of an odd shape."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graft.inspection.examine import ImageFacts

Floats = npt.NDArray[np.float64]

MOST = 0.75
"""Largest score: a poor picture harms less than a wrong label that is as certain."""

FEW_GREY = 0.1
"""Grey images are odd among colour images: they are proposed if no larger share of the images is grey."""


@dataclass(frozen=True)
class Check:
    """A property of a picture with a limit.

    Attributes:
        measure: descriptions -> the property of each, [N].
        limit: of the property.
        below: whether pictures below the limit are proposed; else those above.
        most: largest share of the images that is proposed; where more are beyond the limit, they are the norm.
    """

    measure: Callable[[Sequence[ImageFacts]], Floats]
    limit: float
    below: bool = True
    most: float = 1.0

    def scores(self, facts: Sequence[ImageFacts]) -> Floats:
        """How far each picture is beyond the limit, [N]: 0.5 at the limit, `MOST` as far as can be, less within it."""
        values = self.measure(facts)
        ratio = values / self.limit if self.below else self.limit / np.maximum(values, 1e-9)
        scores = np.maximum(MOST - (MOST - 0.5) * ratio, 0)
        return scores if (scores > 0.5).mean() <= self.most else np.zeros(len(values))


def _quality(name: str) -> Callable[[Sequence[ImageFacts]], Floats]:
    return lambda facts: np.array([getattr(each.quality, name) for each in facts], dtype=np.float64)


def _size(facts: Sequence[ImageFacts]) -> Floats:
    """Short side, as a share of the median short side."""
    sides = np.array([min(each.size) for each in facts], dtype=np.float64)
    return sides / np.median(sides)


def _shape(facts: Sequence[ImageFacts]) -> Floats:
    """Factor between the aspect ratio and the median aspect ratio, at least 1."""
    ratios = np.log([each.size[0] / each.size[1] for each in facts])
    factors: Floats = np.exp(np.abs(ratios - np.median(ratios)))
    return factors


CHECKS: Mapping[str, Check] = {
    "dark": Check(_quality("highlights"), 0.55),
    "overexposed": Check(_quality("shadows"), 0.6, below=False),
    "low_contrast": Check(_quality("contrast"), 0.35),
    "blurred": Check(_quality("sharpness"), 0.15),
    "grey": Check(_quality("colour"), 0.02, most=FEW_GREY),
    "tiny": Check(_size, 0.25),
    "odd_shape": Check(_shape, 2.5, below=False),
}
"""Kind of proposal -> its check. The limits were chosen by looking at the flowers and at ants and bees."""
