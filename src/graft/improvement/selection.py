"""Which unlabelled images to label next: those that a head is unsure of, and that are unlike one another."""

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.system.escaping import CsvWriter

Matrix = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]

BLOCK = 4096
"""Images that are compared with all labelled ones at a time."""


@dataclass(frozen=True)
class Selection:
    """Images to label, in the order in which they were chosen.

    Attributes:
        indices: of the unlabelled images, [K].
        uncertainty: of all unlabelled images, in [0, 1], [N].
    """

    indices: list[int]
    uncertainty: npt.NDArray[np.float64]


def uncertainties(probabilities: Floats) -> npt.NDArray[np.float64]:
    """1 minus the difference of the two largest probabilities of each image, in [0, 1], [N]."""
    largest = np.sort(probabilities, axis=1)
    found: npt.NDArray[np.float64] = 1.0 - (largest[:, -1] - largest[:, -2])
    return found


def select(unit: Matrix, labelled: Matrix, uncertainty: npt.NDArray[np.float64], count: int) -> Selection:
    """Choose images greedily: each time the one with the largest uncertainty times squared distance to what is known.

    Known are the labelled images and those chosen before, so that no two chosen images are alike and none is like a
    labelled one (k-centre greedy, Sener & Savarese 2018, with the weights of uncertainty).

    Args:
        unit: features of length 1 of the unlabelled images, [N, D].
        labelled: those of the labelled images, [M, D].
        uncertainty: of the unlabelled images, [N].
        count: K; fewer where there are fewer images.
    """
    nearest = np.full(len(unit), -1.0)
    for start in range(0, len(unit), BLOCK):
        if len(labelled):
            nearest[start : start + BLOCK] = (unit[start : start + BLOCK] @ labelled.T).max(axis=1)
    left = np.ones(len(unit), dtype=bool)
    chosen: list[int] = []
    for _ in range(min(count, len(unit))):
        gains = np.where(left, (uncertainty + 1e-6) * np.maximum(1.0 - nearest, 0) + 1e-12, -1)  # 1 - cosine: d² / 2
        best = int(gains.argmax())
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, unit @ unit[best])
    return Selection(chosen, uncertainty)


@dataclass(frozen=True)
class Choice:
    """An image to label next.

    Attributes:
        path: relative to the folder of unlabelled images.
        file: its path.
        predicted: the most probable class.
        probability: of that class.
        uncertainty: in [0, 1], see `uncertainties`.
    """

    path: str
    file: str
    predicted: str
    probability: float
    uncertainty: float

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def as_choices(choices: Iterable[Choice]) -> str:
    """The content of label_next.csv, the first to label first; no spreadsheet evaluates a text of it."""
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow(("path", "predicted", "probability", "uncertainty"))
    for each in choices:
        writer.writerow([each.path, each.predicted, f"{each.probability:.4f}", f"{each.uncertainty:.4f}"])
    return text.getvalue()
