"""What a network decides about an image: one of the classes, or each of them; the only table of their differences.

The labels of a data set decide the task (`graft.data.labels.task_of`), and a checkpoint records its name. What needs
torch, such as the activation, is in `graft.learning.decisions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """One kind of classification.

    Attributes:
        name: in checkpoints, summaries and messages.
        measured: metrics of validation and test of every run.
        headline: the one of them that chooses checkpoints unless the configuration names another.
        training: the metric of training batches.
        counterparts: target of a part for one label per image -> what takes its place in this task.
        refused: target of a part that this task has no use for -> the way out.
    """

    name: str
    measured: tuple[str, ...]
    headline: str
    training: str
    counterparts: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


_METRICS = "torchmetrics.classification"
_OWN = "graft.learning.multi_label"

SINGLE_LABEL = Task("single-label", ("acc", "loss"), headline="acc", training="acc")

MULTI_LABEL = Task(
    "multi-label",
    ("map", "f1_micro", "f1_macro", "exact_match", "hamming_loss", "loss"),
    headline="map",
    training="f1_micro",
    counterparts={
        "torch.nn.CrossEntropyLoss": f"{_OWN}.BinaryCrossEntropy",
        "torch.nn.functional.cross_entropy": f"{_OWN}.BinaryCrossEntropy",
        "graft.learning.imbalance.FocalLoss": f"{_OWN}.BinaryFocalLoss",
        f"{_METRICS}.MulticlassF1Score": f"{_METRICS}.MultilabelF1Score",
        f"{_METRICS}.MulticlassMatthewsCorrCoef": f"{_METRICS}.MultilabelMatthewsCorrCoef",
        "graft.learning.classification.AUROC": f"{_OWN}.AUROC",
        "graft.learning.classification.AveragePrecision": f"{_OWN}.AveragePrecision",
        "graft.learning.classification.LogLoss": f"{_OWN}.LogLoss",
        "graft.review.figures.accuracy_per_class": "graft.review.label_figures.scores_per_label",
    },
    refused={
        "graft.learning.imbalance.LogitAdjustedLoss": "Use loss=cross_entropy or loss=focal, with "
        "loss.class_weights or loss=binary_cross_entropy loss.positive_weights=balanced.",
        f"{_METRICS}.MulticlassAccuracy": "Every run measures val/exact_match and val/hamming_loss.",
        "graft.learning.classification.BalancedAccuracy": "Every run measures val/f1_macro and val/map, in which each "
        "label counts the same.",
        f"{_METRICS}.MulticlassCalibrationError": "metrics=log_loss measures the probabilities.",
        f"{_METRICS}.MulticlassCohenKappa": "metrics=mcc measures the agreement beyond chance.",
    },
)

NOT_DRAWN = ("graft.review.figures.confusion", "graft.review.figures.calibration")
"""Figures of one predicted class per image, which a run on several labels does not draw."""

TASKS: Mapping[str, Task] = {task.name: task for task in (SINGLE_LABEL, MULTI_LABEL)}
