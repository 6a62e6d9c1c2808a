"""Metrics of an evaluation, accumulated batch by batch on the device."""

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from graft.config.schema import MetricsConfig
from graft.config.targets import TARGET, accepts, build
from graft.config.task import MULTI_LABEL, SINGLE_LABEL, Task
from graft.errors import ConfigError
from graft.learning.confusion_counts import EvaluationCounts
from graft.learning.decisions import EACH_LABEL, ONE_CLASS, Decisions, decisions_of
from graft.learning.deferred import Batches, Deferred
from graft.learning.label_scores import LabelEvaluation, LabelScores
from graft.learning.losses import Loss
from graft.learning.multi_label import BinaryCrossEntropy

TOP = 5
BINS = 15


@dataclass(frozen=True)
class ClassScore:
    """Number of images of a class, and its precision, recall (equal to its accuracy) and F1, in [0, 1].

    The three are None for a class without images.
    """

    images: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class LabelScore:
    """Number of images with a label and of those predicted to have it, its threshold, and its scores in [0, 1].

    A score is None where it is undefined.
    """

    images: int
    predicted: int
    threshold: float
    ap: float | None
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Scored:
    """The metrics of a split.

    Attributes:
        overall: "loss", "acc", "top5" (with more than five classes), "precision", "recall", "f1" (means over the
            classes that occur or are predicted), "ece"; with several labels per image "loss" and
            `LabelScores.overall`.
        classes: one score per class, in the order of the classes.
        by_class: the metrics of classes under their names, e.g. "test/acc/CLASS" without "test/".
        confusion: `confusion[t][p]` images of class t were predicted as class p; None with several labels per image.
        configured: the run's own metrics, by name.
        images: number of images.
    """

    overall: dict[str, float]
    classes: Sequence[ClassScore | LabelScore]
    by_class: dict[str, float]
    confusion: list[list[int]] | None
    configured: dict[str, float]
    images: int


class SplitScores(Protocol):
    """Accumulates the metrics of a split."""

    classes: Sequence[str]

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch without padding: logits [B, C] and labels as in `Batch`."""

    def compute(self) -> Scored:
        """The metrics of all batches."""


class Scores:
    """Loss and accuracy, bit-identical to those of the test in training, and further metrics.

    ECE is the expected calibration error over 15 equal bins of confidence (Guo et al. 2017, "On Calibration of Modern
    Neural Networks"): the mean difference between the probability of the predicted class and the accuracy.

    Args:
        classes: names of the classes.
        device: of the logits.
        loss: of the run; None for cross-entropy.
        metrics: of the run, by name, as from `build_metrics`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        device: torch.device,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        count = len(classes)
        self.classes, self.loss = classes, loss
        self.configured = ConfiguredMetrics(metrics or {}).to(device)
        self.counts = EvaluationCounts(count, device)
        self.per_class = _counted(count, "none").to(device)
        self.macro = _counted(count, "macro").to(device)
        self.confusion = MulticlassConfusionMatrix(count).to(device)
        self.calibration = MulticlassCalibrationError(count, n_bins=BINS, norm="l1").to(device)
        self.top = MulticlassAccuracy(count, average="micro", top_k=TOP).to(device) if count > TOP else None

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, C] and labels [B] in [0, C)."""
        predicted = logits.argmax(1)
        self.counts.update(logits, labels, None if self.loss is None else self.loss(logits, labels) * len(labels))
        for metric in (self.per_class, self.macro, self.confusion):
            metric.update(predicted, labels)
        probabilities = logits.softmax(1)
        self.calibration.update(probabilities, labels)
        self.configured.update(logits, labels)
        if self.top is not None:
            self.top.update(probabilities, labels)

    def compute(self) -> Scored:
        """The metrics of all batches."""
        counts = self.counts.compute(lambda sums: sums)
        overall = {"loss": counts.mean_loss, "acc": counts.accuracy}
        if self.top is not None:
            overall["top5"] = float(self.top.compute())
        macro = self.macro.compute()
        overall |= {name: float(macro[name]) for name in ("precision", "recall", "f1")}
        overall["ece"] = float(self.calibration.compute())
        confusion = self.confusion.compute().tolist()
        figures = {name: values.tolist() for name, values in self.per_class.compute().items()}
        classes = [
            ClassScore(images, precision, recall, f1) if images else ClassScore(0, None, None, None)
            for images, precision, recall, f1 in zip(
                counts.images, figures["precision"], counts.per_class(), figures["f1"], strict=True
            )
        ]
        by_class = without_split(counts.by_class("", self.classes))
        configured = self.configured.compute(self.classes, counts.images)
        return Scored(overall, classes, by_class, confusion, configured, sum(counts.images))


class ScoresOfLabels:
    """Loss and metrics of images with several labels, bit-identical to those of the test in training.

    Args:
        classes: names of the labels.
        device: of the logits.
        thresholds: of the labels; None: those with the highest F1 of each on these images.
        loss: of the run; None for binary cross-entropy.
        metrics: of the run, by name, as from `build_metrics`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        device: torch.device,
        thresholds: Sequence[float] | None,
        loss: Loss | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        self.classes, self.loss = classes, loss or BinaryCrossEntropy()
        self.configured = ConfiguredMetrics(metrics or {}, EACH_LABEL).to(device)
        self.evaluation = LabelEvaluation(len(classes), device, thresholds)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, C] and labels [B, C] of zeros and ones."""
        self.evaluation.update(logits, labels, self.loss(logits, EACH_LABEL.targets(labels)) * len(labels))
        self.configured.update(logits, labels)

    def compute(self) -> Scored:
        """The metrics of all batches."""
        found = self.evaluation.compute(lambda sums: sums)
        overall = {"loss": found.mean_loss} | found.overall()
        by_class = without_split(found.by_class("", self.classes))
        configured = self.configured.compute(self.classes, found.images)
        return Scored(overall, scores_of_labels(found), by_class, None, configured, found.count)


def scores_for(
    task: Task,
    classes: Sequence[str],
    device: torch.device,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    thresholds: Sequence[float] | None = None,
) -> SplitScores:
    """Empty scores of a task, with their own copy of the metrics; see `Scores` and `ScoresOfLabels`."""
    metrics = copy.deepcopy(dict(metrics or {}))
    if task is MULTI_LABEL:
        return ScoresOfLabels(classes, device, thresholds, loss, metrics)
    return Scores(classes, device, loss, metrics)


def scores_of_labels(found: LabelScores) -> list[LabelScore]:
    """The scores of each label."""
    columns = (found.images, found.predicted, found.thresholds, found.average_precision, found.precision(),
               found.recall(), found.f1())  # fmt: skip
    return [LabelScore(*row) for row in zip(*columns, strict=True)]


def without_split(figures: Mapping[str, float]) -> dict[str, float]:
    """Metrics named without a split: "acc/CLASS" of "/acc/CLASS"."""
    return {name.removeprefix("/"): value for name, value in figures.items()}


def _counted(count: int, average: Literal["none", "macro"]) -> MetricCollection:
    """Precision, recall and F1, which torchmetrics computes from shared counts."""
    kinds = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
    return MetricCollection({name: kind(count, average=average) for name, kind in kinds.items()})


class ConfiguredMetrics(nn.Module):
    """The metrics of the group `metrics` on one split.

    They are updated with large blocks of predictions (`Deferred`), because torchmetrics synchronises with a GPU several
    times in every update.

    Args:
        metrics: by name, each updated with probabilities [N, C] and class indices [N] (zeros and ones [N, C] with
            several labels per image).
        decisions: of the task.
    """

    def __init__(self, metrics: Mapping[str, Metric], decisions: Decisions = ONE_CLASS) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(dict(metrics))
        self._decisions = decisions
        self._deferred = Deferred(self._read)

    def reset(self) -> None:
        """Forget all predictions."""
        self._deferred.clear()
        for metric in self._each().values():
            metric.reset()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, C] and labels as in `Batch`, of which PADDING excludes an image."""
        if self.metrics:
            self._deferred.add(self._decisions.probabilities(logits.detach()), labels)

    def compute(self, classes: Sequence[str], images: Sequence[int]) -> dict[str, float]:
        """The value of each metric by its name, over all processes; where it has one for each class, by NAME/CLASS.

        Args:
            classes: names of the classes.
            images: number of images of each class; those without images have no value.
        """
        self._deferred.flush()
        values: dict[str, float] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes without images
            for name, metric in self._each().items():
                value = metric.compute()
                if value.numel() > 1:
                    rows = zip(classes, images, value.flatten().tolist(), strict=True)
                    values |= {f"{name}/{label}": each for label, count, each in rows if count}
                else:
                    values[name] = float(value)
        return values

    def _each(self) -> dict[str, Metric]:
        return dict(self.metrics.items())  # type: ignore[arg-type]

    def _read(self, batches: Batches) -> None:
        probabilities, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        for metric in self._each().values():
            metric.update(probabilities, labels.long())


OFFERED = {SINGLE_LABEL.name: ("multiclass", ("num_classes",)),
           MULTI_LABEL.name: ("multilabel", ("num_labels", "num_classes"))}  # fmt: skip
"""Task -> torchmetrics' name of it, and the arguments that a metric may take the number of classes by."""


def build_metrics(cfg: MetricsConfig, num_classes: int, task: Task = SINGLE_LABEL) -> dict[str, Metric]:
    """The metrics of `cfg` by name, each updated with probabilities [N, C] and class indices [N] (zeros and ones [N, C]
    with several labels per image).

    A target gets `num_classes` (or `num_labels`), and `task` "multiclass" (or "multilabel"), where it takes an argument
    of that name and the configuration does not give it.

    Raises:
        ConfigError: a target that is no torchmetrics Metric, refuses its arguments, cannot be updated with predictions,
            or does not give one number or one per class.
    """
    metrics = {}
    name_of_task, counts = OFFERED[task.name]
    what = "zeros and ones of its labels" if task is MULTI_LABEL else "class indices"
    for name, node in cfg.arguments().items():
        offered = {"task": name_of_task, **dict.fromkeys(counts, num_classes)}
        supplied = {
            key: value for key, value in offered.items() if node.get(key) is None and accepts(node[TARGET], key)
        }
        metric = build(f"metrics.{name}", node, **supplied)
        target = f"metrics.{name}.{TARGET}={node[TARGET]}"
        if not isinstance(metric, Metric):
            raise ConfigError(f"{target}: gives a {type(metric).__name__}, not a Metric.")
        try:
            value = tried(metric, range(num_classes), num_classes, task)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"{target}: cannot be computed from the probabilities of {num_classes} classes and the {what} "
                f"({reason}).\nUse a metric of several {'labels' if task is MULTI_LABEL else 'classes'}, e.g. "
                f"torchmetrics.classification.{name_of_task.capitalize()}F1Score."
            ) from error
        if not isinstance(value, Tensor) or value.numel() not in (1, num_classes):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"{target}: gives {shape}; one number, or one for each class, is needed.")
        metrics[name] = metric
    return metrics


def tried(metric: Metric, classes: Iterable[int], num_classes: int, task: Task = SINGLE_LABEL) -> Any:
    """The value of a copy of `metric` for two random predictions of images of each of `classes`, at most 64."""
    labels = torch.tensor(list(classes)[:64]).repeat(2)
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(metric)
    logits = torch.rand(len(labels), num_classes, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if task is MULTI_LABEL:
            labels = nn.functional.one_hot(labels, num_classes)
        trial.update(decisions_of(task).probabilities(logits), labels)
        return trial.compute()


def check_metrics(
    metrics: Mapping[str, Metric],
    present: Mapping[str, Sequence[int]],
    num_classes: int,
    monitored: Mapping[str, str],
    task: Task = SINGLE_LABEL,
) -> list[str]:
    """Refuse to choose by a metric without a number on the images that there are; returns notes on other such metrics.

    Args:
        metrics: from `build_metrics`.
        present: split -> the classes that have images in it, where that is known.
        num_classes: C.
        monitored: key -> the metric that it names, e.g. {"optimized_metric": "val/f1"}.
        task: whether an image has one label or several.

    Raises:
        ConfigError: a monitored metric has a value for each class, or is undefined on the split.
    """
    notes = []
    for name, metric in metrics.items():
        keys = {key: full for key, full in monitored.items() if full.partition("/")[2] == name}
        for key, full in keys.items():
            if tried(metric, range(num_classes), num_classes, task).numel() > 1:
                raise ConfigError(
                    f"{key}={full}: has a value for each class, and one number is needed to choose by.\n"
                    f"Where the metric has it, set metrics.{name}.average=macro."
                )
        for split, classes in present.items():
            if not classes or not math.isnan(float(tried(metric, classes, num_classes, task).float().nanmean())):
                continue
            found = f"undefined, because only {len(classes)} of {num_classes} classes have {split} images"
            for key, full in keys.items():
                if full == f"{split}/{name}":
                    raise ConfigError(f"{key}={full}: {found}.\nAdd images of others, or choose another metric.")
            notes.append(f"{split}/{name} is {found}")
    return notes
