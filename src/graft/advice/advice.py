"""The result of `graft advise`: candidates with predictions and costs, as values for JSON and as a table."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from graft.advice.candidates import Candidate
from graft.advice.costs import Cost
from graft.advice.prediction import QUANTILE, Prediction

CHEAP = 0.5
"""The cheap second takes at most this share of the minutes of the advice."""

CONFUSED = 10
"""Largest number of pairs of confused classes that are listed."""


@dataclass(frozen=True)
class Assessed:
    """A candidate with what is known of it before it is trained.

    Attributes:
        candidate: network, strategy and frozen stages.
        prediction: of its test accuracy.
        cost: of its training.
        command: that trains it.
        probe: accuracy of a head that was cross-validated on the frozen features.
        logme: score of these features.
        images: number of images that were looked at.
    """

    candidate: Candidate
    prediction: Prediction
    cost: Cost
    command: str
    probe: float
    logme: float
    images: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "model": self.candidate.source.name,
            "cut": self.candidate.cut,
            "strategy": self.candidate.strategy,
            "predicted_accuracy": round(self.prediction.accuracy, 4),
            "interval": [round(bound, 4) for bound in self.prediction.interval],
            "minutes": float(f"{self.cost.minutes:.3g}"),
            "command": self.command,
            "frozen": list(self.candidate.frozen),
            "memory_bytes": self.cost.memory,
            "size_bytes": self.cost.size,
            "probe_accuracy": round(self.probe, 4),
            "logme": round(self.logme, 4),
            "images": self.images,
        }


@dataclass(frozen=True)
class Confusion:
    """Images of a class that heads on the features of every network predict as another.

    Attributes:
        true, predicted: names of the classes.
        counts: number of images for each network, in the order of the networks.
        images: number of images of the class.
    """

    true: str
    predicted: str
    counts: tuple[int, ...]
    images: int


def ranked(candidates: Sequence[Assessed]) -> list[Assessed]:
    """The candidates by predicted accuracy, the best first; of equal ones the faster first."""
    return sorted(candidates, key=lambda each: (-each.prediction.accuracy, each.cost.minutes))


def within_error(candidates: Sequence[Assessed]) -> int:
    """Number of the first candidates whose difference from the best is smaller than its error.

    Args:
        candidates: ranked.
    """
    best = candidates[0].prediction

    def differs(other: Prediction) -> bool:
        return best.accuracy - other.accuracy > QUANTILE * math.hypot(best.deviation, other.deviation)

    return next((rank for rank, each in enumerate(candidates) if differs(each.prediction)), len(candidates))


def cheap_second(candidates: Sequence[Assessed]) -> Assessed | None:
    """The best of the ranked candidates that take at most `CHEAP` of the minutes of the first."""
    limit = CHEAP * candidates[0].cost.minutes
    return next((each for each in candidates if each.cost.minutes <= limit), None)


def confusions(
    labels: npt.NDArray[np.integer[Any]], predicted: Sequence[npt.NDArray[np.integer[Any]]], classes: Sequence[str]
) -> list[Confusion]:
    """The pairs of classes that every network confuses, the most frequent first.

    Args:
        labels: class indices [N].
        predicted: those that each network predicts, [N] each.
        classes: their names.
    """
    count = len(classes)
    matrices = [np.bincount(labels * count + each, minlength=count**2).reshape(count, count) for each in predicted]
    shared = np.minimum.reduce(matrices)
    np.fill_diagonal(shared, 0)
    totals = np.bincount(labels, minlength=count)
    order = np.argsort(-shared, axis=None, kind="stable")
    cells = ((int(cell) // count, int(cell) % count) for cell in order if shared.flat[cell])
    return [
        Confusion(classes[true], classes[other], tuple(int(each[true, other]) for each in matrices), int(totals[true]))
        for true, other in islice(cells, CONFUSED)
    ]


@dataclass(frozen=True)
class Advice:
    """What `graft advise` found.

    Attributes:
        data: name of the data set.
        candidates: ranked.
        networks: what was probed of each network: its name, images, seconds, accuracy after each stage.
        confusions: see there.
        notes: one sentence each: what was left out, and how sure the advice is.
        record: further values for advise.json.
    """

    data: str
    candidates: list[Assessed]
    networks: list[dict[str, Any]]
    confusions: list[Confusion]
    notes: list[str]
    record: dict[str, Any]

    @property
    def second(self) -> Assessed | None:
        """The cheap second."""
        return cheap_second(self.candidates)

    def to_json(self) -> dict[str, Any]:
        """The content of advise.json."""
        return {
            "data": self.data,
            "advice": self.candidates[0].command,
            "second": None if self.second is None else self.second.command,
            "within_error": within_error(self.candidates),
            "candidates": [each.to_json() for each in self.candidates],
            "networks": self.networks,
            "confusions": [asdict(each) for each in self.confusions],
            "notes": self.notes,
            **self.record,
        }


HEADER = ("", "model", "strategy", "frozen to", "test acc. (90 %)", "minutes", "memory", "size")


def table(advice: Advice) -> Table:
    """The candidates as a table for the terminal."""
    shown = Table(title=f"What to train on {advice.data}, best first", title_justify="left")
    for name in HEADER:
        shown.add_column(name, justify="left" if name in ("model", "strategy", "frozen to") else "right", no_wrap=True)
    within = within_error(advice.candidates)
    for rank, each in enumerate(advice.candidates, start=1):
        shown.add_row(str(rank), *cells(each), end_section=rank == within < len(advice.candidates))
    return shown


def cells(each: Assessed) -> tuple[str, ...]:
    """The texts of a row."""
    low, high = each.prediction.interval
    return (
        each.candidate.source.name,
        each.candidate.strategy,
        each.candidate.cut,
        f"{each.prediction.accuracy:.3f} ({low:.2f}–{high:.2f})",
        f"{each.cost.minutes:.1f}",
        _megabytes(each.cost.memory),
        _megabytes(each.cost.size),
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
