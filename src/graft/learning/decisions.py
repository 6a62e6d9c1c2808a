"""How logits become decisions: one of the classes per image (softmax), or yes or no for each label (sigmoid).

The parts of a task that need torch; the others are in `graft.config.task`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from graft.config.task import MULTI_LABEL, SINGLE_LABEL, Task
from graft.learning.confusion_counts import ClassCounts, EvaluationCounts
from graft.learning.label_scores import LabelEvaluation, LabelScores, f1_of

Evaluation = EvaluationCounts | LabelEvaluation
Evaluated = ClassCounts | LabelScores


class Decisions(ABC):
    """What a task does with logits and labels.

    Attributes:
        task: its names.
    """

    task: ClassVar[Task]

    @abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities [B, C] of logits [B, C]."""

    @abstractmethod
    def logits_of_mean(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits float32 [B, C] whose probabilities are the mean of those of several networks or views, each [B, C].

        Probabilities rather than logits are averaged, as Krizhevsky et al. 2012 and Lakshminarayanan et al. 2017 do:
        each then weighs the same however large its logits are, and the loss is at most the mean of theirs (Jensen). Of
        a single one: its logits.
        """

    @abstractmethod
    def divergence(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """Mean Kullback-Leibler divergence of the probabilities of `logits` from `probabilities`, both [B, C]."""

    @abstractmethod
    def targets(self, labels: Tensor) -> Tensor:
        """Labels of a batch without padding, as a loss takes them."""

    @abstractmethod
    def hits(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        """Counts in a training batch from which `training_metric` is computed."""

    @abstractmethod
    def training_metric(self, hits: Sequence[float], images: float) -> float:
        """The metric `task.training` of these summed counts."""

    @abstractmethod
    def evaluation(self, classes: int, device: torch.device, thresholds: Sequence[float] | None = None) -> Evaluation:
        """An empty evaluation of this number of classes; `thresholds` as in `LabelEvaluation`."""

    @abstractmethod
    def loss_of_guess(self, classes: int) -> float:
        """The cross-entropy of a network that knows nothing."""


class OneClass(Decisions):
    """One class per image: softmax, the most probable class, class indices [B] as labels."""

    task = SINGLE_LABEL

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def logits_of_mean(self, logits: Sequence[Tensor]) -> Tensor:
        if len(logits) == 1:
            return logits[0]
        return _log_mean_exp([each.log_softmax(1) for each in logits])

    def divergence(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        return functional.kl_div(logits.log_softmax(1), probabilities, reduction="batchmean")

    def targets(self, labels: Tensor) -> Tensor:
        return labels

    def hits(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        return [(logits.argmax(1) == labels).sum()]

    def training_metric(self, hits: Sequence[float], images: float) -> float:
        return hits[0] / images

    def evaluation(self, classes: int, device: torch.device, thresholds: Sequence[float] | None = None) -> Evaluation:
        return EvaluationCounts(classes, device)

    def loss_of_guess(self, classes: int) -> float:
        return math.log(max(2, classes))


class EachLabel(Decisions):
    """Yes or no for each label: sigmoid, a threshold for each, rows of zeros and ones [B, C] as labels."""

    task = MULTI_LABEL

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def logits_of_mean(self, logits: Sequence[Tensor]) -> Tensor:
        if len(logits) == 1:
            return logits[0]
        yes, no = (_log_mean_exp([functional.logsigmoid(sign * each) for each in logits]) for sign in (1, -1))
        return yes - no

    def divergence(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        both = torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)])
        truth = torch.stack([probabilities, 1 - probabilities])
        return functional.kl_div(both, truth, reduction="sum") / logits.numel()  # as binary cross-entropy: per decision

    def targets(self, labels: Tensor) -> Tensor:
        return labels.float()

    def hits(self, logits: Tensor, labels: Tensor) -> list[Tensor]:
        predicted, true = logits > 0, labels == 1  # a probability above 0.5
        return [(predicted & true).sum(), predicted.sum(), true.sum()]

    def training_metric(self, hits: Sequence[float], images: float) -> float:
        return f1_of(*hits)

    def evaluation(self, classes: int, device: torch.device, thresholds: Sequence[float] | None = None) -> Evaluation:
        return LabelEvaluation(classes, device, thresholds)

    def loss_of_guess(self, classes: int) -> float:
        return math.log(2)


def _log_mean_exp(logarithms: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the numbers of which these are the logarithms."""
    return torch.stack(list(logarithms)).logsumexp(0) - math.log(len(logarithms))


ONE_CLASS, EACH_LABEL = OneClass(), EachLabel()

_BY_TASK: Mapping[str, Decisions] = {each.task.name: each for each in (ONE_CLASS, EACH_LABEL)}


def decisions_of(task: Task) -> Decisions:
    """What a task does with logits and labels."""
    return _BY_TASK[task.name]
