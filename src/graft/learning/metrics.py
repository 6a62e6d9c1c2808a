"""Metrics of an evaluation, accumulated batch by batch on the device."""

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from graft.errors import ConfigError
from graft.learning.confusion_counts import EvaluationCounts
from graft.learning.deferred import Batches, Deferred
from graft.learning.losses import Loss

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
class Scored:
    """The metrics of a split.

    Attributes:
        overall: "loss", "acc", "top5" (with more than five classes), "precision", "recall", "f1" (means over the
            classes that occur or are predicted), "ece".
        classes: one score per class, in the order of the classes.
        confusion: `confusion[t][p]` images of class t were predicted as class p.
        configured: the run's own metrics, by name.
    """

    overall: dict[str, float]
    classes: list[ClassScore]
    confusion: list[list[int]]
    configured: dict[str, float]


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
        return Scored(overall, classes, confusion, self.configured.compute(self.classes, counts.images))


def _counted(count: int, average: Literal["none", "macro"]) -> MetricCollection:
    """Precision, recall and F1, which torchmetrics computes from shared counts."""
    kinds = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
    return MetricCollection({name: kind(count, average=average) for name, kind in kinds.items()})


class ConfiguredMetrics(nn.Module):
    """The metrics of the group `metrics` on one split.

    They are updated with large blocks of predictions (`Deferred`), because torchmetrics synchronises with a GPU several
    times in every update.

    Args:
        metrics: by name, each updated with probabilities [N, C] and class indices [N].
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(dict(metrics))
        self._deferred = Deferred(self._read)

    def reset(self) -> None:
        """Forget all predictions."""
        self._deferred.clear()
        for metric in self._each().values():
            metric.reset()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, C] and labels [B], of which PADDING excludes an image."""
        if self.metrics:
            self._deferred.add(logits.detach().softmax(1), labels)

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
            metric.update(probabilities, labels)


def build_metrics(cfg: MetricsConfig, num_classes: int) -> dict[str, Metric]:
    """The metrics of `cfg` by name, each updated with probabilities [N, C] and class indices [N].

    A target gets `num_classes`, and `task` "multiclass", where it takes an argument of that name and the configuration
    does not give it.

    Raises:
        ConfigError: a target that is no torchmetrics Metric, refuses its arguments, cannot be updated with predictions,
            or does not give one number or one per class.
    """
    metrics = {}
    for name, node in cfg.arguments().items():
        offered = {"num_classes": num_classes, "task": "multiclass"}
        supplied = {
            key: value for key, value in offered.items() if node.get(key) is None and accepts(node[TARGET], key)
        }
        metric = build(f"metrics.{name}", node, **supplied)
        target = f"metrics.{name}.{TARGET}={node[TARGET]}"
        if not isinstance(metric, Metric):
            raise ConfigError(f"{target}: gives a {type(metric).__name__}, not a Metric.")
        try:
            value = tried(metric, range(num_classes), num_classes)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"{target}: cannot be computed from the probabilities of {num_classes} classes and the class indices "
                f"({reason}).\nUse a metric of several classes, e.g. torchmetrics.classification.MulticlassF1Score."
            ) from error
        if not isinstance(value, Tensor) or value.numel() not in (1, num_classes):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"{target}: gives {shape}; one number, or one for each class, is needed.")
        metrics[name] = metric
    return metrics


def tried(metric: Metric, classes: Iterable[int], num_classes: int) -> Any:
    """The value of a copy of `metric` for two random predictions of images of each of `classes`, at most 64."""
    labels = torch.tensor(list(classes)[:64]).repeat(2)
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(metric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial.update(torch.rand(len(labels), num_classes, generator=generator).softmax(1), labels)
        return trial.compute()


def check_metrics(
    metrics: Mapping[str, Metric], present: Mapping[str, Sequence[int]], num_classes: int, monitored: Mapping[str, str]
) -> list[str]:
    """Refuse to choose by a metric without a number on the images that there are; returns notes on other such metrics.

    Args:
        metrics: from `build_metrics`.
        present: split -> the classes that have images in it, where that is known.
        num_classes: C.
        monitored: key -> the metric that it names, e.g. {"optimized_metric": "val/f1"}.

    Raises:
        ConfigError: a monitored metric has a value for each class, or is undefined on the split.
    """
    notes = []
    for name, metric in metrics.items():
        keys = {key: full for key, full in monitored.items() if full.partition("/")[2] == name}
        for key, full in keys.items():
            if tried(metric, range(num_classes), num_classes).numel() > 1:
                raise ConfigError(
                    f"{key}={full}: has a value for each class, and one number is needed to choose by.\n"
                    f"Where the metric has it, set metrics.{name}.average=macro."
                )
        for split, classes in present.items():
            if not classes or not math.isnan(float(tried(metric, classes, num_classes).float().nanmean())):
                continue
            found = f"undefined, because only {len(classes)} of {num_classes} classes have {split} images"
            for key, full in keys.items():
                if full == f"{split}/{name}":
                    raise ConfigError(f"{key}={full}: {found}.\nAdd images of others, or choose another metric.")
            notes.append(f"{split}/{name} is {found}")
    return notes
