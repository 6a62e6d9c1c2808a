"""Predictions of a network for labelled images as plain arrays, and statistics of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from graft.data.labels import text_of

if TYPE_CHECKING:
    from graft.learning.label_scores import LabelScores

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
class Answers:
    """True and predicted class, or set of labels, of some images, as they are recorded.

    Attributes:
        labels, predicted: class indices, or indices into `sets`, int [M].
        confidence: probability of what is predicted, of several labels that of the least certain decision, [M].
        sets: indices of the labels in each set; None for one label per image.
    """

    labels: Array
    predicted: Array
    confidence: Array
    sets: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Predictions:
    """Predictions of a network for N labelled images of one part of a data set.

    Attributes:
        step: number of optimizer steps taken before.
        epoch: the current epoch, counted from 0.
        indices: indices of the images, int [N], ascending.
        labels, predicted: class indices, int [N].
        confidence: probability of the predicted class, float [N] in [0, 1].
        truth: probability of the true class, float [N] in [0, 1].
        scores: probabilities of the first K classes, float [N, K].
        features: the head's input of some of these images, float [M, D]; M may be 0.
        feature_indices: indices of those images, int [M].
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
    def headline(self) -> str:
        """The most important metric, for a caption."""
        return f"accuracy {self.accuracy:.3f}"

    @property
    def correct(self) -> Array:
        """Whether each prediction is correct, bool [N]."""
        return self.predicted == self.labels

    def most_probable(self, positions: Array) -> Array:
        """The predicted class of the images at `positions`."""
        return cast(Array, self.predicted[positions])

    def texts(self, position: int, classes: Sequence[str]) -> tuple[str, str]:
        """(predicted, true) class of an image."""
        return classes[self.predicted[position]], classes[self.labels[position]]

    def answers(self, positions: Array) -> Answers:
        """What is recorded of the images at `positions`."""
        return Answers(self.labels[positions], self.predicted[positions], self.confidence[positions])

    def curve(self, number: int) -> tuple[Array, Array]:
        """(whether each image is of a class, its probability), of one of the first K classes."""
        return self.labels == number, self.scores[:, number]

    @property
    def accuracy(self) -> float:
        """Share of correct predictions in [0, 1]; NaN if there are no predictions."""
        return float(self.correct.mean()) if len(self) else float("nan")

    def per_class(self, classes: int) -> tuple[Array, Array]:
        """(correct, totals): number of correctly predicted images of each class, and of all its images, int [C]."""
        return np.bincount(self.labels[self.correct], minlength=classes), np.bincount(self.labels, minlength=classes)

    def confusion_cells(self, classes: int) -> tuple[Array, Array]:
        """(cells, counts): the non-zero cells of the confusion matrix (true * C + predicted) and their values, largest
        first."""
        cells, counts = np.unique(self.labels.astype(np.int64) * classes + self.predicted, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return cells[order], counts[order]

    def confusion(self, classes: int) -> Array:
        """The confusion matrix: true classes in rows, predicted ones in columns, int64 [C, C]."""
        cells, counts = self.confusion_cells(classes)
        matrix = np.zeros(classes * classes, dtype=np.int64)
        matrix[cells] = counts
        return matrix.reshape(classes, classes)

    def calibration(self, bins: int = 15) -> Calibration:
        """Confidence against accuracy (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""
        which = np.clip(np.ceil(self.confidence * bins).astype(int) - 1, 0, bins - 1)
        counts = np.bincount(which, minlength=bins)
        with np.errstate(invalid="ignore"):
            confidence = np.bincount(which, self.confidence, bins) / counts
            accuracy = np.bincount(which, self.correct, bins) / counts
        gaps = np.abs(np.nan_to_num(accuracy - confidence))
        return Calibration(confidence, accuracy, counts, float((gaps * counts).sum() / max(1, counts.sum())))

    def worst(self, count: int) -> Array:
        """Positions of at most `count` wrong predictions, lowest probability of the true class first."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(self.truth[wrong], kind="stable")][:count]

    def sample(self, count: int, names: Sequence[str]) -> Array:
        """Positions of at most `count` images, see `sample_of`."""
        return sample_of(self.indices, count, names)


@dataclass(frozen=True)
class LabelPredictions:
    """Predictions of a network for N images of one part of a data set, each with any number of C labels.

    Attributes:
        step, epoch, indices, features, feature_indices: as in `Predictions`.
        labels: whether an image has a label, bool [N, C].
        scores: probabilities of the labels, float32 [N, C].
        thresholds: an image is predicted to have a label if its probability is at least this, [C].
    """

    step: int
    epoch: int
    indices: Array
    labels: Array
    scores: Array
    thresholds: tuple[float, ...]
    features: Array
    feature_indices: Array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def headline(self) -> str:
        """The most important metrics, for a caption."""
        scored = self.scored
        return f"mAP {scored.map:.3f} · exact match {scored.exact / max(1, scored.count):.3f}"

    @cached_property
    def predicted(self) -> Array:
        """Whether each label is predicted, bool [N, C]."""
        return self.scores.astype(np.float64) >= np.array(self.thresholds)

    @property
    def correct(self) -> Array:
        """Whether all labels of an image are predicted, and no other, bool [N]."""
        return cast(Array, (self.predicted == self.labels).all(axis=1))

    @cached_property
    def scored(self) -> "LabelScores":
        """The metrics of these images."""
        import torch

        from graft.learning.label_scores import scores_of

        scores, labels = torch.from_numpy(self.scores), torch.from_numpy(self.labels)
        return scores_of(scores.double(), labels, self.thresholds)

    def most_probable(self, positions: Array) -> Array:
        """The most probable label of the images at `positions`."""
        return cast(Array, self.scores[positions].argmax(axis=1))

    def texts(self, position: int, classes: Sequence[str]) -> tuple[str, str]:
        """(predicted, true) labels of an image, each on one line."""
        predicted, true = (text_of(row[position], classes) for row in (self.predicted, self.labels))
        return predicted, true

    def answers(self, positions: Array) -> Answers:
        """What is recorded of the images at `positions`."""
        labels, predicted, scores = self.labels[positions], self.predicted[positions], self.scores[positions]
        rows, inverse = np.unique(np.concatenate([labels, predicted]), axis=0, return_inverse=True)
        true, decided = inverse.reshape(2, len(positions))
        certain = np.where(predicted, scores, 1 - scores).min(axis=1, initial=1.0)
        return Answers(true, decided, certain, tuple(tuple(np.flatnonzero(row).tolist()) for row in rows))

    def per_class(self, classes: int) -> tuple[Array, Array]:
        """(correct, totals): number of images with a label for which it is predicted, and of all with it, int [C]."""
        return (self.labels & self.predicted).sum(axis=0), self.labels.sum(axis=0)

    def confusion_cells(self, classes: int) -> tuple[Array, Array]:
        """No cells: with several labels per image no class is confused with another."""
        return np.zeros(0, np.int64), np.zeros(0, np.int64)

    def curve(self, number: int) -> tuple[Array, Array]:
        """(whether each image has a label, its probability)."""
        return self.labels[:, number], self.scores[:, number]

    def worst(self, count: int) -> Array:
        """Positions of at most `count` images with a wrong label, the largest cross-entropy of a decision first."""
        wrong = np.flatnonzero(~self.correct)
        truth = np.where(self.labels, self.scores, 1 - self.scores)[wrong].min(axis=1, initial=1.0)
        return wrong[np.argsort(truth, kind="stable")][:count]

    def sample(self, count: int, names: Sequence[str]) -> Array:
        """Positions of at most `count` images, see `sample_of`."""
        return sample_of(self.indices, count, names)


AnyPredictions = Predictions | LabelPredictions


def sample_of(indices: Array, count: int, names: Sequence[str]) -> Array:
    """Positions of at most `count` images, chosen by their names' digests: the same images in every run.

    Args:
        indices: of the images.
        count: of positions.
        names: of all images of this part, by index.
    """
    digests = [digest(names[index]) for index in indices]
    return np.argsort(np.array(digests, dtype=np.uint64), kind="stable")[:count]


def digest(name: str) -> int:
    """A 64-bit hash of an image's name, the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
