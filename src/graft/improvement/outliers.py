"""Images that are far from all others: pictures of something else."""

import numpy as np
import numpy.typing as npt

from graft.improvement.neighbours import BLOCK, Matrix, standardised

NEAREST = 10
"""Neighbours whose mean distance counts."""

LIMIT = 2.5
"""Distance from the median above which an image is proposed, as a multiple of the upper spread (`outlier_scores`).

Nearly all of the 22 such images of the flower photographs show something else in the first place: tractors, a bus,
dogs, cups, a hotel room. Cosines between features do not find them: what is odd is how strong their features are."""

SPREAD = 0.84
"""Quantile whose distance from the median is the upper spread: a standard deviation, if distances were normal."""

Floats = npt.NDArray[np.float64]


def outlier_scores(features: Matrix) -> Floats:
    """How far each image is from its nearest others of any class, in upper spreads above the median, [N].

    An image with a wrong label is among images of its true class, so it is no outlier.

    Args:
        features: [N, D], as `graft.improvement.label_errors.spread_out` returns them.
    """
    points = standardised(features)
    squares = (points**2).sum(axis=1)
    count = min(NEAREST, len(points) - 1)
    distances = np.zeros(len(points))
    for start in range(0, len(points), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(points)))
        between = squares[rows, None] + squares - 2 * points[rows] @ points.T
        between[np.arange(len(rows)), rows] = np.inf
        nearest = np.partition(between, count - 1, axis=1)[:, :count]
        distances[rows] = np.sqrt(np.maximum(nearest, 0)).mean(axis=1)
    middle, upper = np.quantile(distances, (0.5, SPREAD))
    found: Floats = (distances - middle) / max(upper - middle, 1e-9)
    return found
