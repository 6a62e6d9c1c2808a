"""Labels that look wrong, by the probabilities of heads that have not seen them (confident learning).

Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.improvement.neighbours import Neighbours, votes
from graft.probing.heads import out_of_fold

Labels = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]

HARDNESS = 0.25
"""How much less suspect a label is if all classes are as probable: the image is rather hard than its label wrong."""

FLOOR = 1e-4
"""Smallest probability in a product: one judge alone rules nothing out."""


@dataclass(frozen=True)
class LabelErrors:
    """The labels of N images of C classes that look wrong.

    Attributes:
        probabilities: of each image by heads and neighbours that do not know its label, [N, C].
        joint: estimated number of images by given class and true class, [C, C]; its sum is N.
        scores: how suspect each label is, in [0, 1], [N].
        proposed: the most probable other class of each image, [N].
        suspects: indices of the images whose given class has less than half of the probability, the most suspect first.
    """

    probabilities: Floats
    joint: Floats
    scores: Floats
    proposed: npt.NDArray[np.int64]
    suspects: npt.NDArray[np.int64]

    @property
    def estimated(self) -> float:
        """Estimated number of wrong labels."""
        return float(self.joint.sum() - np.trace(self.joint))


def judged(
    features: Matrix,
    labels: Labels,
    neighbours: Neighbours,
    num_classes: int,
    groups: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    lower: Matrix | None = None,
) -> Floats:
    """The probabilities of each image's classes by judges that do not know its label, float64 [N, C].

    They are the normalised geometric mean of an out-of-fold logistic regression and of the vote of the nearest other
    images: a wrong label misleads the first a little everywhere and the second only nearby, so that together they rank
    wrong labels better than either (docs/improve.md has the figures).

    Args:
        features: [N, D], as `spread_out` returns them.
        labels: class indices [N].
        neighbours: of the same images; none of the same group.
        num_classes: C.
        groups: of each image; no group is divided between folds.
        folds, seed: of the cross-validation.
        lower: of the same images after lower stages, [N, E]; the regression uses them too if it then predicts more of
            the labels.
    """
    heads = out_of_fold(features, labels, groups, folds, seed, num_classes=num_classes)
    if lower is not None:
        joined = np.concatenate([features, lower], axis=1)
        others = out_of_fold(joined, labels, groups, folds, seed, num_classes=num_classes)
        if (others.argmax(axis=1) == labels).sum() > (heads.argmax(axis=1) == labels).sum():
            heads = others
    return pooled_opinion(heads, votes(neighbours, labels, num_classes))


def pooled_opinion(*judges: Floats) -> Floats:
    """The normalised geometric mean of probabilities, each [N, C]."""
    logs = np.mean([np.log(each + FLOOR) for each in judges], axis=0)
    product = np.exp(logs - logs.max(axis=1, keepdims=True))
    found: Floats = product / product.sum(axis=1, keepdims=True)
    return found


def spread_out(features: Matrix) -> Matrix:
    """Features whose large values count less: their square roots, with the sign kept.

    Means of rectified maps are skewed; after the root, distances and linear heads depend less on few channels.
    """
    return (np.sign(features) * np.sqrt(np.abs(features))).astype(np.float32)


def find_label_errors(probabilities: Floats, labels: Labels) -> LabelErrors:
    """Labels that look wrong.

    A label is the more suspect the less probable it is, and a little less so where no other class is clearly meant.

    Args:
        probabilities: out-of-fold, [N, C].
        labels: given class indices, [N].
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -1
    proposed = others.argmax(axis=1)
    scores = (1 - own) * (1 - HARDNESS * entropies(probabilities))
    order = np.argsort(-scores, kind="stable")
    suspects = order[(own < 0.5)[order]]
    return LabelErrors(probabilities, confident_joint(probabilities, labels), scores, proposed, suspects)


def entropies(probabilities: Floats) -> Floats:
    """Entropy of each row as a share of the largest possible one, in [0, 1], [N]."""
    found: Floats = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)
    return found / np.log(probabilities.shape[1])


def confident_joint(probabilities: Floats, labels: Labels) -> Floats:
    """Estimated number of images by given class and true class, [C, C].

    An image counts for a class if its probability reaches the class's threshold, the mean probability of that class
    among the images that are labelled so; for several such classes it counts for the most probable one. Each row is
    then scaled to the number of images that have its label.

    Args:
        probabilities: out-of-fold, [N, C].
        labels: given class indices, [N].
    """
    count, num_classes = probabilities.shape
    sizes = np.bincount(labels, minlength=num_classes)
    given = np.zeros((count, num_classes))
    given[np.arange(count), labels] = 1
    thresholds = np.where(sizes > 0, (probabilities * given).sum(axis=0) / np.maximum(sizes, 1), np.inf)
    reached = np.where(probabilities >= thresholds, probabilities, -1)
    confident = reached.max(axis=1) >= 0
    joint = np.zeros((num_classes, num_classes))
    np.add.at(joint, (labels[confident], reached.argmax(axis=1)[confident]), 1)
    totals = joint.sum(axis=1, keepdims=True)
    joint = np.where(totals > 0, joint, np.eye(num_classes))  # no confident image of the class: as given
    found: Floats = joint / joint.sum(axis=1, keepdims=True) * sizes[:, None]
    return found
