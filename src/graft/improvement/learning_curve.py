"""What more images would buy: accuracy by number of training images, and its forecast.

Heads are fitted to nested, stratified subsets of each fold's training images. The error is taken to follow a power law
with an offset, a + b n^-c (Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import StandardScaler

from graft.data.labels import numbered
from graft.probing.heads import logistic, split, strengthened

Labels = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float32]

SHARES = (0.125, 0.18, 0.25, 0.35, 0.5, 0.71, 1.0)
"""Sizes of the subsets, as shares of the images that train in a fold."""

FACTORS = (2, 4)
"""Multiples of the number of images that are forecast."""

EXPONENTS = np.linspace(0.1, 0.7, 13)
"""Values of c that are tried; Hestness et al. report 0.07 to 0.35, and smaller data sets come closer to 0.5."""

DRAWS = 400
"""Bootstrap samples of the images."""

LEVEL = 0.9
"""Share of the forecasts that their intervals are to contain."""

LEAST_NOISE = 0.003
"""Smallest standard deviation of the measured error around its power law: another draw of the subset changes it."""


@dataclass(frozen=True)
class Forecast:
    """An expected accuracy with its interval, which is to contain it in `LEVEL` of the cases.

    Attributes:
        images: number of training images.
        value, low, high: in [0, 1].
    """

    images: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by number of training images, of all images or of one class.

    Attributes:
        name: of the class; "" for all images.
        images: number of training images of all classes, ascending.
        accuracy: out-of-fold with each number, in [0, 1].
        forecasts: of larger numbers of images with the same shares of the classes.
    """

    name: str
    images: tuple[int, ...]
    accuracy: tuple[float, ...]
    forecasts: tuple[Forecast, ...]

    def plain(self) -> dict[str, Any]:
        """The entry of improve.json; the class of all images is null."""
        return {
            "class": self.name or None,
            "images": list(self.images),
            "accuracy": [round(each, 4) for each in self.accuracy],
            "forecasts": [
                {
                    "images": each.images,
                    "accuracy": round(each.value, 4),
                    "interval": [round(each.low, 4), round(each.high, 4)],
                }
                for each in self.forecasts
            ],
            "level": LEVEL,
        }


@dataclass(frozen=True)
class Measured:
    """Which images were predicted correctly by heads that were fitted to subsets of different sizes.

    Attributes:
        sizes: mean number of images of the subsets, ascending, [S].
        correct: [S, N].
    """

    sizes: Floats
    correct: npt.NDArray[np.bool_]


def learning_curves(
    features: Matrix,
    labels: Labels,
    classes: Sequence[str],
    groups: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
    targets: Sequence[int] | None = None,
    done: Callable[[], object] = lambda: None,
) -> list[LearningCurve]:
    """The learning curve of all images, followed by that of each class.

    Args:
        features: [N, D].
        labels: class indices [N].
        classes: names of the C classes.
        groups: of each image; no group is divided between folds.
        folds, seed: of the cross-validation and of the subsets.
        targets: numbers of training images to forecast for; None: `FACTORS` times N.
        done: called after each of `folds` times len(SHARES) heads.
    """
    numbers = None if groups is None else numbered(groups)[1]
    measured = measure(features, labels, numbers, folds, seed, done)
    aims = [factor * len(labels) for factor in FACTORS] if targets is None else list(targets)
    random = np.random.RandomState(seed)
    weights = random.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), DRAWS).astype(np.float64)
    wrong = ~measured.correct
    curves = []
    for number, name in [(None, ""), *enumerate(classes)]:
        own = np.ones(len(labels), bool) if number is None else labels == number
        if not own.any():
            continue
        totals = weights[:, own].sum(axis=1)
        drawn = (weights[totals > 0][:, own] @ wrong[:, own].T.astype(np.float64)) / totals[totals > 0, None]
        forecasts = extrapolated(measured.sizes, wrong[:, own].mean(axis=1), drawn, aims, random)
        accuracy = measured.correct[:, own].mean(axis=1)
        curves.append(
            LearningCurve(name, tuple(measured.sizes.round().astype(int).tolist()), tuple(accuracy.tolist()), forecasts)
        )
    return curves


def measure(
    features: Matrix,
    labels: Labels,
    groups: Labels | None,
    folds: int,
    seed: int,
    done: Callable[[], object] = lambda: None,
) -> Measured:
    """Out-of-fold predictions of heads that were fitted to nested, stratified subsets.

    The strength of the penalty is chosen once, on the whole first fold, because choosing it for each subset would take
    several times as long and change little.
    """
    divided = split(labels, groups, folds, seed)
    correct = np.zeros((len(SHARES), len(labels)), dtype=bool)
    sizes = np.zeros(len(SHARES))
    strength: float | None = None
    for number, (fit, rest) in enumerate(divided):
        order = fit[nested_order(labels[fit], seed + number)]
        for row, share in enumerate(SHARES):
            part = order[: max(2, round(share * len(order)))]
            sizes[row] += len(part) / len(divided)
            known = np.unique(labels[part])
            if len(known) < 2:
                correct[row, rest] = labels[rest] == known[0]
                done()
                continue
            scale = StandardScaler().fit(features[part])
            if strength is None:
                chosen = logistic(scale.transform(features[fit]), labels[fit], None, seed)
                strength = float(chosen.C)  # type: ignore[attr-defined]
            head = strengthened(scale.transform(features[part]), labels[part], strength)
            best = head.predict_proba(scale.transform(features[rest])).argmax(axis=1)
            correct[row, rest] = head.classes_[best] == labels[rest]
            done()
    return Measured(sizes, correct)


def nested_order(labels: Labels, seed: int) -> npt.NDArray[np.int64]:
    """A random order of the images in which each beginning has the shares of the classes of the whole, [N]."""
    random = np.random.RandomState(seed % 2**32)
    position = np.zeros(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        position[random.permutation(members)] = (np.arange(len(members)) + random.uniform()) / len(members)
    return np.argsort(position, kind="stable")


@dataclass(frozen=True)
class Fits:
    """Laws a + b n^-c that are fitted to rows of errors: half of them without an offset a, half with one.

    Attributes:
        a, b: [B, L].
        c: [L].
        misfit: sum of the squared residuals, [B, L].
    """

    a: Floats
    b: Floats
    c: Floats
    misfit: Floats

    def at(self, images: int) -> Floats:
        """The error of each law with this number of images, [B, L]."""
        found: Floats = self.a + self.b * float(images) ** -self.c
        return found


def extrapolated(
    sizes: Floats, errors: Floats, drawn: Floats, aims: Sequence[int], random: np.random.RandomState
) -> tuple[Forecast, ...]:
    """Forecasts of the accuracy with other numbers of images.

    Each bootstrap sample is explained by a law that is drawn by how well it fits the sample, so that an interval
    covers the sampling of the images as well as what the measured sizes leave open about the law.

    Args:
        sizes: numbers of training images, [S].
        errors: measured with each, [S].
        drawn: the same of bootstrap samples, [B, S].
        aims: numbers of images to forecast for.
        random: source of the draws.
    """
    laws = fitted(sizes, np.vstack([errors, drawn]))
    misfit = laws.misfit
    noise = max(float(misfit[0].min()) / max(1, len(sizes) - 3), LEAST_NOISE**2)
    chances = np.exp(-0.5 * (misfit - misfit.min(axis=1, keepdims=True)) / noise)
    chances /= chances.sum(axis=1, keepdims=True)
    picked = (chances[1:].cumsum(axis=1) > random.uniform(size=(len(drawn), 1))).argmax(axis=1)
    rows = np.arange(len(drawn))
    tail = (1 - LEVEL) / 2
    found = []
    for aim in aims:
        errors_then = laws.at(aim)
        own = float((chances[0] * errors_then[0]).sum())
        spread = errors_then[1:][rows, picked] + random.normal(0, LEAST_NOISE, len(drawn))
        low, high = np.quantile(spread, (tail, 1 - tail)) if len(spread) else (own, own)
        value, best, worst = (float(np.clip(1 - each, 0, 1)) for each in (own, low, high))
        found.append(Forecast(int(aim), value, min(worst, value), max(best, value)))
    return tuple(found)


def fitted(sizes: Floats, errors: Floats) -> Fits:
    """The laws a + b n^-c with a, b >= 0, of each exponent with and without an offset, for each row of errors.

    Args:
        sizes: numbers of training images, [S].
        errors: measured with each, [B, S].
    """
    basis = sizes[:, None] ** -EXPONENTS  # [S, E]
    through_zero = errors @ basis / (basis**2).sum(axis=0)
    centred = basis - basis.mean(axis=0)
    b = np.maximum((errors - errors.mean(axis=1, keepdims=True)) @ centred / (centred**2).sum(axis=0), 0)
    a = errors.mean(axis=1, keepdims=True) - b * basis.mean(axis=0)
    b, a = np.where(a < 0, through_zero, b), np.maximum(a, 0)
    a, b = np.hstack([np.zeros_like(a), a]), np.hstack([through_zero, b])
    residual = errors[:, :, None] - a[:, None, :] - b[:, None, :] * np.hstack([basis, basis])[None]
    return Fits(a, b, np.concatenate([EXPONENTS, EXPONENTS]), (residual**2).sum(axis=1))
