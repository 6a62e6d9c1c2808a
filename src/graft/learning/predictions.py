"""What a network said of labelled images, as plain arrays, and the statistics made of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in `bins` equal bins of [0, 1].

    Attributes:
        confidence, accuracy: mean of each bin, NaN where it is empty, [bins].
        counts: images in each bin, [bins].
        error: expected calibration error in [0, 1]: the mean gap between both, weighted by counts.
    """

    confidence: Array
    accuracy: Array
    counts: Array
    error: float


@dataclass(frozen=True)
class Predictions:
    """What a network said of N labelled images of one part of a data set.

    Attributes:
        step: optimizer steps taken by then.
        epoch: the epoch it was in, counted from 0.
        indices: which images, int [N], ascending.
        labels, predicted: class indices, int [N].
        confidence: probability of the predicted class, float [N] in [0, 1].
        truth: probability of the true class, float [N] in [0, 1].
        scores: probabilities of the first K classes, float [N, K].
        features: what the head saw of some of these images, float [M, D]; M may be 0.
        feature_indices: which images those are, int [M].
    """

    step: int
    epoch: int
    indices: Array
    labels: Array
    predicted: Array
    confidence: Array
    truth: Array
    scores: Array
    features: Array
    feature_indices: Array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Array:
        """Which predictions are right, bool [N]."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Share of right predictions; NaN where there are none at all."""
        return float(self.right.mean()) if len(self) else float("nan")

    def per_class(self, classes: int) -> tuple[Array, Array]:
        """(correct, totals): how many images of each class were called by its name, and how many there are, [C]."""
        return np.bincount(self.labels[self.right], minlength=classes), np.bincount(self.labels, minlength=classes)

    def confusion_cells(self, classes: int) -> tuple[Array, Array]:
        """(cells, counts): the confusion matrix's cells (true * C + predicted) that are not empty, the fullest first,
        and how many images are in each."""
        cells, counts = np.unique(self.labels.astype(np.int64) * classes + self.predicted, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return cells[order], counts[order]

    def confusion(self, classes: int) -> Array:
        """How often the true class (row) was called the predicted one (column), int64 [C, C]."""
        cells, counts = self.confusion_cells(classes)
        matrix = np.zeros(classes * classes, dtype=np.int64)
        matrix[cells] = counts
        return matrix.reshape(classes, classes)

    def calibration(self, bins: int = 15) -> Calibration:
        """How far confidence is to be believed (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""
        which = np.clip(np.ceil(self.confidence * bins).astype(int) - 1, 0, bins - 1)
        counts = np.bincount(which, minlength=bins)
        with np.errstate(invalid="ignore"):
            confidence = np.bincount(which, self.confidence, bins) / counts
            accuracy = np.bincount(which, self.right, bins) / counts
        gaps = np.abs(np.nan_to_num(accuracy - confidence))
        return Calibration(confidence, accuracy, counts, float((gaps * counts).sum() / max(1, counts.sum())))

    def worst(self, count: int) -> Array:
        """Positions of at most `count` wrong predictions, the least probable truth first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(self.truth[wrong], kind="stable")][:count]

    def sample(self, count: int, names: Sequence[str]) -> Array:
        """Positions of at most `count` images, chosen by their names' digests: the same images in every run.

        Args:
            names: of all images of this part, by index.
        """
        digests = [digest(names[index]) for index in self.indices]
        return np.argsort(np.array(digests, dtype=np.uint64), kind="stable")[:count]


def digest(name: str) -> int:
    """64 bits that stand for an image's name, on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
