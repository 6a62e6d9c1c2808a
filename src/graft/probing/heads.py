"""Heads that are fitted to features in seconds, and their predictions for images that they were not fitted to."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

from graft.config.fields import one_of
from graft.data.labels import numbered
from graft.errors import DataError

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Probabilities = npt.NDArray[np.float64]
Fold = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""(indices to fit to, indices to predict)."""

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
"""Values of C to choose from: the inverse strength of the penalty of a logistic regression on standardised features."""

INNER = 4
"""A strength is chosen by the log loss on one of this number of parts of the images to fit to."""


class Head(Protocol):
    """A classifier of scikit-learn."""

    classes_: Integers

    def predict_proba(self, X: Floats) -> Probabilities: ...


def logistic(features: Floats, labels: Integers, groups: Integers | None, seed: int) -> Head:
    """Multinomial logistic regression; the strength of its penalty is chosen on a part of the images."""
    strength = STRENGTHS[2]
    if (np.unique(labels, return_counts=True)[1] >= 2).sum() >= 2:
        fit, rest = split(labels, groups, INNER, seed)[0]
        known = np.unique(labels[fit])
        rest = rest[np.isin(labels[rest], known)]
        if len(known) > 1 and len(rest):
            heads = {each: strengthened(features[fit], labels[fit], each) for each in STRENGTHS}
            losses = {
                each: log_loss(labels[rest], head.predict_proba(features[rest]), labels=known)
                for each, head in heads.items()
            }
            strength = min(losses, key=losses.__getitem__)
    return strengthened(features, labels, strength)


def strengthened(features: Floats, labels: Integers, strength: float) -> Head:
    """Multinomial logistic regression with a given inverse strength of its penalty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as precise after 200 iterations as predictions need
        fitted: Head = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(features, labels)
        return fitted


def lda(features: Floats, labels: Integers, groups: Integers | None, seed: int) -> Head:
    """Linear discriminant analysis with the shrinkage of Ledoit and Wolf 2004, in closed form."""
    fitted: Head = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(features, labels)
    return fitted


HEADS: dict[str, Callable[[Floats, Integers, Integers | None, int], Head]] = {"logistic": logistic, "lda": lda}


def out_of_fold(
    features: Floats,
    labels: Integers,
    groups: Sequence[str] | npt.NDArray[Any] | None = None,
    folds: int = 5,
    seed: int = 0,
    head: str = "logistic",
    num_classes: int | None = None,
) -> Probabilities:
    """The probabilities of each image by a head that was fitted to the other folds, float64 [N, C].

    Features are standardised by the mean and standard deviation of the images to fit to. Of images with several labels,
    each label has a head of its own (one against the rest). A class that is in one fold only has probability 0 there.

    Args:
        features: [N, D], finite.
        labels: class indices [N], or zeros and ones [N, C].
        groups: of each image; no group is divided. None: each image is one.
        folds: number of folds; fewer where there are fewer groups, or no class has as many images.
        seed: of the folds; the result depends on nothing else.
        head: "logistic" (the strength of its penalty is chosen within the other folds) or "lda" (in closed form).
        num_classes: C; None: up to the largest label.

    Raises:
        DataError: fewer than two classes, groups or images of a class.
    """
    one_of("head", head, HEADS)
    numbers = None if groups is None else numbered(groups)[1]
    features = np.asarray(features, dtype=np.float32)
    if labels.ndim == 2:
        return _each_label(features, labels, numbers, folds, seed, head)
    found = np.zeros((len(labels), int(labels.max(initial=-1)) + 1 if num_classes is None else num_classes))
    for fit, rest in split(labels, numbers, folds, seed):
        scale = StandardScaler().fit(features[fit])
        known = np.unique(labels[fit])
        if len(known) == 1:
            found[rest, known[0]] = 1
            continue
        fitted = HEADS[head](
            scale.transform(features[fit]), labels[fit], None if numbers is None else numbers[fit], seed
        )
        found[np.ix_(rest, fitted.classes_)] = fitted.predict_proba(scale.transform(features[rest]))
    return found


def _each_label(
    features: Floats, labels: Integers, groups: Integers | None, folds: int, seed: int, head: str
) -> Probabilities:
    """The probability of each label by itself, [N, C]; of a label that all images have or none has, its frequency."""
    found = np.tile(labels.mean(0), (len(labels), 1))
    for number, column in enumerate(labels.T.astype(np.int64)):
        if 2 <= column.sum() <= len(column) - 2:
            found[:, number] = out_of_fold(features, column, groups, folds, seed, head, 2)[:, 1]
    return found


def split(labels: Integers, groups: Integers | None, folds: int, seed: int) -> list[Fold]:
    """Stratified folds that divide no group; see `out_of_fold`."""
    counts = np.unique(labels, return_counts=True)[1]
    largest = int(counts.max(initial=0)) if groups is None else len(np.unique(groups))
    folds = min(folds, largest)
    if len(counts) < 2 or folds < 2:
        what = f"{len(counts)} classes, {largest} {'images of the largest' if groups is None else 'groups'}"
        raise DataError(
            f"cross-validation needs at least 2 classes and 2 images or groups to divide; there are {what}."
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        divided = kind(folds, shuffle=True, random_state=seed % 2**32).split(labels, labels, groups)
        return [(fit.astype(np.int64), rest.astype(np.int64)) for fit, rest in divided]
