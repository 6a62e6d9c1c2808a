"""Nearest neighbours of images among their features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.data.labels import numbered

Matrix = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer[Any]]

NEAREST = 30
"""Largest number of neighbours that vote on a label."""

BLOCK = 1024
"""Images that are compared with all others at a time."""

SHARPNESS = 10.0
"""A neighbour's vote is exp(SHARPNESS * cosine): those that are much closer than the others decide."""

PRIOR = 0.02
"""Share of the votes that is spread evenly over the classes."""

SIDE = 3
"""Neighbours of the given and of the proposed class that are shown next to an image."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest other images of N images.

    Attributes:
        indices: the nearest first, int64 [N, K].
        cosines: of the angles between their features, float32 [N, K]; -1 where there are fewer than K others.
    """

    indices: npt.NDArray[np.int64]
    cosines: Matrix


def voters(total: int, num_classes: int) -> int:
    """The number of neighbours that vote on a label: half of the mean class, at least 3 and at most `NEAREST`."""
    return int(np.clip(total // (2 * num_classes), 3, NEAREST))


def standardised(features: Matrix) -> Matrix:
    """Features with mean 0 and standard deviation 1 over the images, float32 [N, D]."""
    found: Matrix = ((features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)).astype(np.float32)
    return found


def directions(features: Matrix) -> Matrix:
    """Standardised features of length 1, float32 [N, D], whose scalar products are cosines."""
    standard = standardised(features)
    return (standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def find_neighbours(unit: Matrix, groups: Sequence[str] | None = None, count: int = NEAREST) -> Neighbours:
    """The nearest other images of each image.

    Args:
        unit: features of length 1, [N, D].
        groups: of each image; images of one group are no neighbours of one another.
        count: K.
    """
    total = len(unit)
    numbers = np.arange(total) if groups is None else numbered(groups)[1]
    count = min(count, max(1, total - 1))
    indices, cosines = np.zeros((total, count), np.int64), np.zeros((total, count), np.float32)
    for start in range(0, total, BLOCK):
        rows = np.arange(start, min(start + BLOCK, total))
        similar = unit[rows] @ unit.T
        similar[numbers[rows][:, None] == numbers[None, :]] = -1
        nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(similar, nearest, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        indices[rows], cosines[rows] = np.take_along_axis(nearest, order, 1), np.take_along_axis(found, order, 1)
    return Neighbours(indices, cosines)


def votes(neighbours: Neighbours, labels: Labels, num_classes: int) -> npt.NDArray[np.float64]:
    """The share of each class in the votes of an image's neighbours, float64 [N, C]."""
    weights = np.where(neighbours.cosines > -1, np.exp(SHARPNESS * (neighbours.cosines - 1.0)), 0).astype(np.float64)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    chosen = labels[neighbours.indices]
    shares = np.stack([np.where(chosen == label, weights, 0).sum(axis=1) for label in range(num_classes)], axis=1)
    found: npt.NDArray[np.float64] = (1 - PRIOR) * shares + PRIOR / num_classes
    return found


def nearest_of_class(unit: Matrix, labels: Labels, index: int, label: int, count: int = SIDE) -> list[int]:
    """The images of a class that are nearest to an image, the nearest first, without itself."""
    members = np.flatnonzero(labels == label)
    members = members[members != index]
    order = np.argsort(-(unit[members] @ unit[index]), kind="stable")[:count]
    return members[order].tolist()
