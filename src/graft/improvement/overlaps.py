"""Pairs of classes that overlap: images of one that look like the other."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST = 0.01
"""Smallest share of the images of two classes that are predicted as the other, for the pair to be named."""


@dataclass(frozen=True)
class Overlap:
    """Two classes whose images are confused out of fold.

    Attributes:
        classes: their names.
        confused: number of images of either that are predicted as the other.
        share: of the images of both.
        wrong_labels: estimated number of images of either whose true class is the other, by confident learning.
    """

    classes: tuple[str, str]
    confused: int
    share: float
    wrong_labels: float

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def overlaps(
    probabilities: npt.NDArray[np.float64],
    labels: npt.NDArray[np.integer[Any]],
    joint: npt.NDArray[np.float64],
    classes: Sequence[str],
) -> list[Overlap]:
    """The pairs that overlap, the most confused first.

    Args:
        probabilities: out-of-fold, [N, C].
        labels: class indices [N].
        joint: of `confident_joint`, [C, C].
        classes: names.
    """
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    sizes = counts.sum(axis=1)
    both = counts + counts.T
    found = []
    for one, other in np.argwhere(np.triu(both, 1)).tolist():
        share = both[one, other] / (sizes[one] + sizes[other])
        if share >= LEAST:
            wrong = float(joint[one, other] + joint[other, one])
            names = (classes[one], classes[other])
            found.append(Overlap(names, int(both[one, other]), round(float(share), 4), round(wrong, 1)))
    return sorted(found, key=lambda each: (-each.share, each.classes))
