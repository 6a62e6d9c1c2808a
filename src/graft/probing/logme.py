"""LogME, a score of how well features explain labels (You et al. 2021, "LogME: Practical Assessment of Pre-trained
Models for Transfer Learning")."""

from typing import Any

import numpy as np
import numpy.typing as npt

ITERATIONS = 100
TOLERANCE = 1e-5


def logme(features: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> float:
    """The largest log evidence of a Bayesian linear model of each class on the features, per image, mean over classes.

    Higher is better. Scores are comparable between features of the same images only.

    Args:
        features: [N, D].
        labels: class indices [N], or zeros and ones [N, C].
    """
    inputs = np.asarray(features, dtype=np.float64)
    targets = labels if labels.ndim == 2 else labels[:, None] == np.unique(labels)
    count, width = inputs.shape
    left, singular, _ = np.linalg.svd(inputs, full_matrices=False)
    sigma = singular**2
    scores = []
    for target in np.asarray(targets, dtype=np.float64).T:
        squares = (left.T @ target) ** 2
        outside = max(float(target @ target - squares.sum()), 0.0)  # of the target, what no feature explains
        scores.append(_evidence(sigma, squares, outside, count, width))
    return float(np.mean(scores))


def _evidence(
    sigma: npt.NDArray[np.float64], squares: npt.NDArray[np.float64], outside: float, count: int, width: int
) -> float:
    """The largest log evidence per image over the precisions of the weights (alpha) and of the noise (beta), by the
    fixed-point iteration of the paper.

    Args:
        sigma: eigenvalues of the features' Gram matrix.
        squares: squared projections of the target on its eigenvectors.
        outside: squared length of the rest of the target.
        count, width: N and D.
    """
    alpha = beta = 1.0
    for _ in range(ITERATIONS):
        ratio = alpha / beta
        gamma = float((sigma / (sigma + ratio)).sum())
        weights = float((sigma * squares / (sigma + ratio) ** 2).sum())  # squared length of the mean weights
        residual = float((squares * ratio**2 / (sigma + ratio) ** 2).sum()) + outside
        alpha, beta = gamma / (weights + 1e-12), (count - gamma) / (residual + 1e-12)
        if abs(alpha / beta - ratio) <= TOLERANCE * ratio:
            break
    ratio = alpha / beta
    weights = float((sigma * squares / (sigma + ratio) ** 2).sum())
    residual = float((squares * ratio**2 / (sigma + ratio) ** 2).sum()) + outside
    determinant = float(np.log(alpha + beta * sigma).sum()) + (width - len(sigma)) * np.log(alpha)
    evidence = width * np.log(alpha) + count * np.log(beta) - determinant - beta * residual - alpha * weights
    return float(evidence - count * np.log(2 * np.pi)) / (2 * count)
