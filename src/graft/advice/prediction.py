"""Predicts the test accuracy of a candidate from probes of its network's features, with an interval.

The accuracy of a head that was cross-validated on the features at the end of the backbone is corrected for the number
of training images by a power law, and on the scale of log odds a gain is added: what training in the candidate's way
has gained over such a head in the runs of `python -m benchmarks.advice`, which fits the gains and writes them to
`GAINS`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from graft.probing.heads import Integers, Probabilities

GAINS = Path(__file__).with_name("gains.json")

CERTAINTY = 0.9
QUANTILE = 1.645
"""Probability of an interval, and half its width in standard deviations."""

STEEPEST = 0.5
"""Largest exponent of the power law of the error over the number of images; measured ones are noisy."""


@dataclass(frozen=True)
class Probe:
    """The accuracy of a head on the features at the end of a backbone.

    Attributes:
        accuracy: of images that the head was not fitted to.
        deviation: standard deviation of that estimate: of its images, and of its folds.
        images: number of images that the head was fitted to.
        exponent: of the power law of the error over that number.
    """

    accuracy: float
    deviation: float
    images: float
    exponent: float

    @classmethod
    def of(cls, labels: Integers, whole: Probabilities, half: Probabilities, folds: int) -> "Probe":
        """The probe of out-of-fold probabilities.

        Args:
            labels: class indices [N].
            whole: probabilities [N, C] by heads that were fitted to all folds but one.
            half: those by heads that were fitted to half of the images.
            folds: number of folds of `whole`.
        """
        count = len(labels)
        correct = whole.argmax(1) == labels
        error, larger = (
            (1 - np.mean(each) + 1 / count) / (1 + 2 / count) for each in (correct, half.argmax(1) == labels)
        )
        used = count * (folds - 1) / folds
        exponent = math.log(larger / error) / math.log(used / (count / 2)) if used > count / 2 else 0.0
        variance = error * (1 - error) / count
        return cls(1 - float(error), math.sqrt(float(variance)), used, min(max(exponent, 0.0), STEEPEST))

    def at(self, images: float) -> float:
        """The accuracy of a head that is fitted to this number of images."""
        return 1 - (1 - self.accuracy) * float(images / self.images) ** -self.exponent


@dataclass(frozen=True)
class Prediction:
    """A predicted test accuracy.

    Attributes:
        accuracy: the prediction.
        interval: contains the accuracy that a run measures with probability CERTAINTY.
        deviation: standard deviation of what a run of another seed or candidate would change, without the probe's own
            error, which all candidates of a network share.
    """

    accuracy: float
    interval: tuple[float, float]
    deviation: float


@dataclass(frozen=True)
class Gain:
    """What training gains over a cross-validated head, in log odds of the accuracy.

    Attributes:
        coefficients: name of an input (see `inputs`) -> its factor.
        deviation: standard deviation of the error on data sets that the coefficients were not fitted to.
    """

    coefficients: Mapping[str, float]
    deviation: float

    def of(self, values: Mapping[str, float]) -> float:
        """The gain for these inputs."""
        return sum(factor * values[name] for name, factor in self.coefficients.items())


@cache
def _measured() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(GAINS.read_text(encoding="utf-8"))
    return content


def gains() -> dict[str, Gain]:
    """Strategy -> its gain, as measured."""
    strategies = _measured()["strategies"]
    return {name: Gain(each["coefficients"], each["deviation"]) for name, each in strategies.items()}


def start_seconds() -> float:
    """Seconds of a run besides its passes over images, as measured: start, figures, checkpoints."""
    return float(_measured()["start_seconds"])


def inputs(head: float, chance: float, trained: float, steps: float) -> dict[str, float]:
    """What a gain may depend on.

    Args:
        head: accuracy of a head on the frozen features.
        chance: accuracy of a guess: the share of the largest class.
        trained: fraction of the stages before the head that train.
        steps: number of optimizer steps.
    """
    room = log_odds(head) - log_odds(chance)
    return {
        "constant": 1.0,
        "trained": trained,
        "steps": math.log10(max(steps, 1.0)) - 2,
        "head": log_odds(head),
        "room": room,
        "trained_head": trained * log_odds(head),
        "trained_steps": trained * (math.log10(max(steps, 1.0)) - 2),
    }


def predict(
    probe: Probe, strategy: str, *, images: int, tested: int, chance: float, trained: float, steps: float
) -> Prediction:
    """The test accuracy of a candidate.

    Args:
        probe: of its network.
        strategy: a key of `gains`.
        images: number of training images.
        tested: number of test images, whose choice makes the measured accuracy vary.
        chance, trained, steps: as for `inputs`.
    """
    gain = gains()[strategy]
    head = probe.at(images)
    accuracy = from_log_odds(log_odds(head) + gain.of(inputs(head, chance, trained, steps)))
    slope = accuracy * (1 - accuracy)
    own = gain.deviation * slope
    sampled = math.sqrt(slope / max(1, tested))
    extrapolated = abs(head - probe.accuracy) / 2
    deviation = math.sqrt(own**2 + sampled**2 + extrapolated**2 + probe.deviation**2)
    interval = (max(0.0, accuracy - QUANTILE * deviation), min(1.0, accuracy + QUANTILE * deviation))
    return Prediction(accuracy, interval, own)


def log_odds(accuracy: float) -> float:
    """log(p / (1 - p)), of p in [0.005, 0.995]."""
    accuracy = min(max(accuracy, 0.005), 0.995)
    return math.log(accuracy / (1 - accuracy))


def from_log_odds(value: float) -> float:
    """The inverse of `log_odds`."""
    return 1 / (1 + math.exp(-value))
