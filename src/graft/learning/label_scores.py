"""Scores of a network that decides about each label: average precision, thresholds, and the metrics at them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graft.data.datasets import real_rows
from graft.errors import DataError
from graft.learning.confusion_counts import widest

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelScores:
    """The metrics of an evaluation of N images with C labels, over all processes.

    Attributes:
        loss: summed over the images.
        count: N.
        images: number of images with each label.
        correct: number of these images that are predicted to have it.
        predicted: number of all images that are predicted to have it.
        thresholds: an image is predicted to have a label if its probability is at least this.
        average_precision: of each label; None for one that no image has.
        exact: number of images all of whose labels are predicted correctly, and no other.
    """

    loss: float
    count: int
    images: tuple[int, ...]
    correct: tuple[int, ...]
    predicted: tuple[int, ...]
    thresholds: tuple[float, ...]
    average_precision: tuple[float | None, ...]
    exact: int

    @property
    def mean_loss(self) -> float:
        """Mean loss per image."""
        return self.loss / self.count

    @property
    def map(self) -> float:
        """Mean average precision: over the labels that images have; NaN without any."""
        return _mean([each for each in self.average_precision if each is not None])

    def precision(self) -> list[float | None]:
        """Share of the images predicted to have a label that have it; None where none is predicted to."""
        return [_share(correct, predicted) for correct, predicted in zip(self.correct, self.predicted, strict=True)]

    def recall(self) -> list[float | None]:
        """Share of the images with a label that are predicted to have it; None for a label that no image has."""
        return [_share(correct, images) for correct, images in zip(self.correct, self.images, strict=True)]

    def f1(self) -> list[float | None]:
        """F1 of each label; None where no image has it or is predicted to have it."""
        rows = zip(self.correct, self.images, self.predicted, strict=True)
        return [_share(2 * correct, images + predicted) for correct, images, predicted in rows]

    def overall(self) -> dict[str, float]:
        """The metrics that every run on several labels measures, except the loss."""
        wrong = sum(self.images) + sum(self.predicted) - 2 * sum(self.correct)
        decisions = self.count * len(self.images)
        return {
            "map": self.map,
            "f1_micro": f1_of(sum(self.correct), sum(self.predicted), sum(self.images)),
            "f1_macro": _mean([each for each in self.f1() if each is not None]),
            "exact_match": self.exact / self.count,
            "hamming_loss": wrong / decisions,
        }

    def figures(self, split: str) -> dict[str, float]:
        """The metrics under their names ("val/loss", …); raises DataError if there was no image."""
        if not self.count:
            raise DataError(f"none of the {split} images can be read any more.")
        return {f"{split}/loss": self.mean_loss} | {f"{split}/{name}": value for name, value in self.overall().items()}

    def by_class(self, split: str, classes: Sequence[str]) -> dict[str, float]:
        """The average precision and F1 of each label that images have, as "test/ap/CLASS" and "test/f1/CLASS"."""
        names = list(classes)
        each = {"ap": self.average_precision, "f1": self.f1()}
        return {
            f"{split}/{metric}/{name}": value
            for metric, values in each.items()
            for name, value, images in zip(names, values, self.images, strict=True)
            if images and value is not None
        }

    def collapse(self, classes: Sequence[str]) -> str | None:
        """What is wrong if all images get the same probabilities: usually too large a step has broken the network."""
        chance = [images / self.count for images in self.images]  # of images with equal probabilities
        pairs = zip(self.average_precision, chance, strict=True)
        if any(precision is not None and abs(precision - chance) > 1e-9 for precision, chance in pairs):
            return None
        return "every validation image gets the same probabilities"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def f1_of(correct: float, predicted: float, images: float) -> float:
    """F1 of these numbers of decisions; 0 if there are neither labels nor predicted ones."""
    return 2 * correct / (predicted + images) if predicted + images else 0.0


class LabelEvaluation:
    """Predictions and summed loss of an evaluation, kept on the device and scored once at its end.

    It takes 4 C + C bytes per image for C labels.

    Args:
        labels: number of labels, C.
        device: of the logits.
        thresholds: of the decisions, [C]; None: those with the highest F1 of each label on these images.
    """

    def __init__(self, labels: int, device: torch.device, thresholds: Sequence[float] | None = None) -> None:
        self.labels, self.thresholds = labels, thresholds
        self._loss = torch.zeros(1, dtype=widest(device), device=device)
        self._probabilities: list[Tensor] = [torch.zeros(0, labels, device=device)]
        self._targets: list[Tensor] = [torch.zeros(0, labels, dtype=torch.int8, device=device)]

    def update(self, logits: Tensor, labels: Tensor, loss: Tensor) -> None:
        """Add a batch.

        Args:
            logits: float32 [B, C].
            labels: zeros and ones, int8 [B, C]; a row of PADDING excludes an image.
            loss: summed over the images.
        """
        self.add_loss(loss)
        self._probabilities.append(logits.detach().sigmoid())
        self._targets.append(labels)

    def add_loss(self, loss: Tensor) -> None:
        """Add the summed loss of a batch."""
        self._loss += loss

    def compute(
        self, reduce: Callable[[Tensor], Tensor], gather: Callable[[list[Tensor]], Tensor] = torch.cat
    ) -> LabelScores:
        """The scores of all processes.

        Args:
            reduce: sums a tensor over the processes.
            gather: concatenates the rows of all batches and processes.
        """
        (loss,) = reduce(self._loss).tolist()
        probabilities, targets = gather(self._probabilities).cpu(), gather(self._targets).cpu()
        kept = real_rows(targets)
        return scores_of(probabilities[kept].double(), targets[kept] == 1, self.thresholds, loss)


def scores_of(
    probabilities: Tensor, targets: Tensor, thresholds: Sequence[float] | None = None, loss: float = 0.0
) -> LabelScores:
    """The scores of predictions.

    Args:
        probabilities: float64 [N, C].
        targets: bool [N, C].
        thresholds: as in `LabelEvaluation`.
        loss: summed over the images.
    """
    ranking = Ranking.of(probabilities, targets)
    chosen = best_thresholds(ranking) if thresholds is None else list(thresholds)
    decided = decide(probabilities, chosen)
    images = targets.sum(0).tolist()
    precision = average_precision(ranking).tolist()
    return LabelScores(
        loss=loss,
        count=len(targets),
        images=tuple(images),
        correct=tuple((decided & targets).sum(0).tolist()),
        predicted=tuple(decided.sum(0).tolist()),
        thresholds=tuple(chosen),
        average_precision=tuple(each if count else None for each, count in zip(precision, images, strict=True)),
        exact=int((decided == targets).all(1).sum()),
    )


def decide(probabilities: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Whether each label is predicted, bool [N, C]: its probability, as float64, is at least its threshold."""
    return probabilities.double() >= torch.tensor(thresholds, dtype=torch.float64)


@dataclass(frozen=True)
class Ranking:
    """The images in descending order of the probability of each label.

    Attributes:
        probabilities: float64 [N, C], descending in each column.
        hits: bool [N, C]: which of these images have the label.
        found: float64 [N, C]: number of images with the label among the first i.
        ends: int64 [N, C]: row of the last image with the same probability.
    """

    probabilities: Tensor
    hits: Tensor
    found: Tensor
    ends: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, targets: Tensor) -> "Ranking":
        """The ranking of predictions [N, C]."""
        ordered, order = probabilities.sort(dim=0, descending=True, stable=True)
        hits = targets.gather(0, order)
        rows = torch.arange(len(ordered))[:, None].expand_as(ordered)
        last = torch.ones_like(hits)
        last[:-1] = ordered[:-1] != ordered[1:]
        ends = rows.where(last, len(ordered)).flip(0).cummin(0).values.flip(0) if len(ordered) else rows
        return cls(ordered, hits, hits.double().cumsum(0), ends)


def average_precision(ranking: Ranking) -> Tensor:
    """Average precision of each label, float64 [C]: the mean of the precision at each image that has it.

    Images with the same probability count as one step, as in scikit-learn. NaN for a label that no image has.
    """
    places = torch.arange(1, len(ranking.found) + 1, dtype=torch.float64)[:, None]
    precision = (ranking.found / places).gather(0, ranking.ends)
    return (precision * ranking.hits).sum(0) / ranking.hits.sum(0)


def best_thresholds(ranking: Ranking) -> list[float]:
    """The threshold with the highest F1 of each label; of several the nearest to 0.5.

    Each is halfway between the lowest probability above it and the next one. 0.5 for a label that no image has, or
    all: such images say nothing about it.
    """
    count, labels = ranking.hits.shape
    if not count:
        return [DEFAULT_THRESHOLD] * labels
    places = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
    positives = ranking.hits.sum(0)
    below = torch.cat([ranking.probabilities[1:], torch.zeros(1, labels, dtype=torch.float64)])
    candidates = (ranking.probabilities + below) / 2
    is_end = ranking.ends == torch.arange(count)[:, None]
    f1 = (2 * ranking.found / (places + positives)).where(is_end, -1.0)
    distance = (candidates - DEFAULT_THRESHOLD).abs().where(f1 == f1.amax(0), torch.inf)
    chosen = candidates.gather(0, distance.argmin(0, keepdim=True))[0]
    informative = (positives > 0) & (positives < count)
    thresholds: list[float] = chosen.where(informative, DEFAULT_THRESHOLD).tolist()
    return thresholds
