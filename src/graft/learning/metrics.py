"""Metrics of an evaluation, accumulated batch by batch on the device."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
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
    """

    overall: dict[str, float]
    classes: list[ClassScore]
    confusion: list[list[int]]


class Scores:
    """Loss and accuracy, bit-identical to those of the test in training, and further metrics.

    ECE is the expected calibration error over 15 equal bins of confidence (Guo et al. 2017, "On Calibration of Modern
    Neural Networks"): the mean difference between the probability of the predicted class and the accuracy.

    Args:
        count: number of classes.
        device: of the logits.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.counts = EvaluationCounts(count, device)
        self.per_class = _counted(count, "none").to(device)
        self.macro = _counted(count, "macro").to(device)
        self.confusion = MulticlassConfusionMatrix(count).to(device)
        self.calibration = MulticlassCalibrationError(count, n_bins=BINS, norm="l1").to(device)
        self.top = MulticlassAccuracy(count, average="micro", top_k=TOP).to(device) if count > TOP else None

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, C] and labels [B] in [0, C)."""
        predicted = logits.argmax(1)
        self.counts.update(logits, labels)
        for metric in (self.per_class, self.macro, self.confusion):
            metric.update(predicted, labels)
        probabilities = logits.softmax(1)
        self.calibration.update(probabilities, labels)
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
        return Scored(overall, classes, confusion)


def _counted(count: int, average: Literal["none", "macro"]) -> MetricCollection:
    """Precision, recall and F1, which torchmetrics computes from shared counts."""
    kinds = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
    return MetricCollection({name: kind(count, average=average) for name, kind in kinds.items()})


def build_metrics(cfg: MetricsConfig, num_classes: int) -> dict[str, Metric]:
    """The metrics of `cfg` by name, each updated with probabilities [B, C] and class indices [B].

    A target gets `num_classes` where it takes that argument and the configuration does not give it.

    Raises:
        ConfigError: a target that is no torchmetrics Metric, or refuses its arguments.
    """
    metrics = {}
    for name, node in cfg.parts().items():
        needs_count = "num_classes" not in node and accepts(node[TARGET], "num_classes")
        metric = build(f"metrics.{name}", node, **({"num_classes": num_classes} if needs_count else {}))
        if not isinstance(metric, Metric):
            raise ConfigError(f"metrics.{name}.{TARGET}={node[TARGET]}: gives a {type(metric).__name__}, not a Metric.")
        metrics[name] = metric
    return metrics
