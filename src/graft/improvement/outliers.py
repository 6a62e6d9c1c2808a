"""Images that are far from all others: pictures of something else, or taken in another way."""

import numpy as np
import numpy.typing as npt

from graft.improvement.neighbours import Neighbours

LIMIT = 3.5
"""Robust standard deviations from the median of the (logarithmic) distances; Iglewicz & Hoaglin 1993 use the same."""

Floats = npt.NDArray[np.float64]


def outlier_scores(neighbours: Neighbours) -> Floats:
    """How far each image is from its nearest neighbours of any class, in robust standard deviations, [N].

    The median and the median absolute deviation are those of the logarithms of the mean distances, which are roughly
    normal. An image with a wrong label is among images of its true class, so it is no outlier.
    """
    logs = np.log(np.maximum(neighbours.distances, 1e-6))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    found: Floats = (logs - middle) / max(spread, 1e-6)
    return found
