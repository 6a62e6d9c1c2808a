"""Predicts the test accuracy of a candidate from probes of its network's features, with an interval.

The network's head is trained on the features at the end of the backbone, as in a run, and cross-validated. Its accuracy
is corrected for the number of training images by a power law, and on the scale of log odds a gain is added: what
training in the candidate's way has gained over such a head in the runs of `python -m benchmarks.advice`, which fits the
gains and writes them to `GAINS`. Fine-tuning gains the more, the more a lower stage tells than the end of the backbone.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GAINS = Path(__file__).with_name("gains.json")

CERTAINTY = 0.9
QUANTILE = 1.645
"""Probability of an interval, and half its width in standard deviations."""

STEEPEST = 0.25
"""Largest exponent of the power law of the error over the number of images; measured ones are noisy."""


@dataclass(frozen=True)
class Probe:
    """Accuracies of heads on the features of a network, of images that the heads were not fitted to.

    Attributes:
        trained: of the network's own head at the end of the backbone, trained in the number of steps of the run with
            its optimizer and augmentation.
        converged: of a linear classifier there.
        best_stage: of a linear classifier after the stage at which it is best.
        deviation: standard deviation of `trained` over the choice of the images.
        images: number of images that the heads were fitted to.
        exponent: of the power law of the error over that number.
    """

    trained: float
    converged: float
    best_stage: float
    deviation: float
    images: float
    exponent: float

    @classmethod
    def of(
        cls,
        converged: npt.NDArray[np.bool_],
        half: npt.NDArray[np.bool_],
        trained: npt.NDArray[np.bool_],
        folds: int,
        best_stage: float,
    ) -> "Probe":
        """The probe of correct (true) and wrong predictions.

        Args:
            converged: by logistic regressions at the end of the backbone that were fitted to all folds but one.
            half: by logistic regressions that were fitted to half of the images.
            trained: by heads that were trained as in a run on all folds but one; maybe of some of the images only.
            folds: number of folds.
            best_stage: see the attribute.
        """
        count = len(converged)
        error, larger, own = (
            (float((~each).sum()) + 0.5) / (len(each) + 1) for each in (converged, half, trained)
        )  # never 0 or 1
        used = count * (folds - 1) / folds
        exponent = math.log(larger / error) / math.log(used / (count / 2)) if used > count / 2 else 0.0
        deviation = math.sqrt(own * (1 - own) / len(trained))
        return cls(1 - own, 1 - error, best_stage, deviation, used, min(max(exponent, 0.0), STEEPEST))

    def at(self, images: float) -> tuple[float, float, float]:
        """(`trained`, `converged`, `best_stage`) of heads that are fitted to this number of images."""
        factor = float(images / self.images) ** -self.exponent
        return 1 - (1 - self.trained) * factor, 1 - (1 - self.converged) * factor, 1 - (1 - self.best_stage) * factor


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
    """What training gains over a cross-validated head on frozen features, in log odds of the accuracy.

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


@dataclass(frozen=True)
class Way:
    """What is known of a way to train a network, besides the probe of its features.

    Attributes:
        strategy: a key of `gains`.
        unfrozen: fraction of the stages before the head that train.
        images: number of training images.
        tested: number of test images, whose choice makes the measured accuracy vary.
    """

    strategy: str
    unfrozen: float
    images: int
    tested: int


def inputs(probe: Probe, way: Way) -> dict[str, float]:
    """What a gain may depend on, by name."""
    head, converged, best_stage = map(log_odds, probe.at(way.images))
    gains = {"converged": converged - head, "best_stage": best_stage - head}
    return {"constant": 1.0, "unfrozen": way.unfrozen, "head": head, **gains}


def predict(probe: Probe, way: Way, gain: Gain | None = None) -> Prediction:
    """The test accuracy of a network trained in a way, by a gain; None: the measured one of the strategy."""
    gain = gain or gains()[way.strategy]
    head = probe.at(way.images)[0]
    accuracy = from_log_odds(log_odds(head) + gain.of(inputs(probe, way)))
    slope = accuracy * (1 - accuracy)
    own = gain.deviation * slope
    sampled = math.sqrt(slope / max(1, way.tested))
    extrapolated = abs(head - probe.trained) / 2
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
