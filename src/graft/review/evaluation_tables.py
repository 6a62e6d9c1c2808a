"""The metrics of an evaluation as tables: overall, per class, and the most confused pairs of classes."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from graft.system.escaping import CsvWriter, printable

if TYPE_CHECKING:
    from graft.learning.confusion_counts import ClassCounts
    from graft.learning.label_scores import LabelScores

MOST_CLASSES = 40
MOST_MISTAKES = 5

TITLES = {
    "loss": "loss",
    "acc": "accuracy",
    "top5": "top-5 accuracy",
    "precision": "precision (mean of classes)",
    "recall": "recall (mean of classes)",
    "f1": "F1 (mean of classes)",
    "ece": "calibration error (ECE)",
    "map": "mean average precision (mAP)",
    "f1_micro": "F1 of all decisions (micro)",
    "f1_macro": "F1 (mean of labels)",
    "exact_match": "all labels right (exact match)",
    "hamming_loss": "share of wrong decisions (Hamming)",
}


def overall_table(figures: Mapping[str, float]) -> Table:
    """One row per metric, with its title.

    Args:
        figures: name, as in `TITLES` -> value.
    """
    table = Table(show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(TITLES.get(name, name), f"{value:.4f}")
    return table


def member_table(rows: Mapping[str, Sequence[float]], names: Sequence[str]) -> Table:
    """One row for an ensemble and for each of its networks, one column per metric.

    Args:
        rows: "ensemble" or the file of a network -> its values.
        names: of the metrics, as "test/acc".
    """
    table = Table(title="the ensemble, and each network alone", title_justify="left")
    table.add_column("network", overflow="fold")
    for name in names:
        table.add_column(name.partition("/")[2], justify="right", no_wrap=True)
    for network, values in rows.items():
        table.add_row(Text(printable(network)), *(f"{value:.4f}" for value in values))
    return table


def accuracy_table(classes: Sequence[str], counts: "ClassCounts") -> Table:
    """One row per class that has test images: correct predictions, images, accuracy; of more than 40 the lowest.

    Args:
        classes: names.
        counts: of the test.
    """
    rows = [
        (accuracy, name, correct, images)
        for accuracy, name, correct, images in zip(
            counts.per_class(), classes, counts.correct, counts.images, strict=True
        )
        if accuracy is not None
    ]
    title = "test accuracy per class"
    if len(rows) > MOST_CLASSES:
        title += f", the {MOST_CLASSES} lowest of {len(rows)}"
        rows = sorted(rows, key=lambda row: row[0])[:MOST_CLASSES]
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    for heading in ("correct", "images", "accuracy"):
        table.add_column(heading, justify="right")
    for accuracy, name, correct, images in rows:
        table.add_row(Text(printable(name)), f"{correct:,}", f"{images:,}", f"{accuracy:.4f}")
    return table


def label_table(classes: Sequence[str], scores: "LabelScores") -> Table:
    """One row per label: images, threshold, average precision, precision, recall, F1; of more than 40 the lowest F1.

    Args:
        classes: names of the labels.
        scores: of the images.
    """
    columns = (scores.images, scores.predicted, scores.thresholds, scores.average_precision, scores.precision(),
               scores.recall(), scores.f1())  # fmt: skip
    keys = ("images", "predicted", "threshold", "ap", "precision", "recall", "f1")
    rows = {name: dict(zip(keys, row, strict=True)) for name, *row in zip(classes, *columns, strict=True)}
    return table_of_labels(rows)


def table_of_labels(rows: Mapping[str, Mapping[str, float | None]]) -> Table:
    """One row per label; of more than 40 those with the lowest F1; – where a score is undefined.

    Args:
        rows: label -> the fields of `graft.learning.metrics.LabelScore`.
    """
    title = "per label"
    if len(rows) > MOST_CLASSES:
        title = f"the {MOST_CLASSES} of {len(rows)} labels with the lowest F1"
        rows = dict(
            sorted(rows.items(), key=lambda item: 2.0 if item[1]["f1"] is None else item[1]["f1"])[:MOST_CLASSES]
        )
    table = Table(title=title, title_justify="left")
    table.add_column("label", overflow="fold")
    for name in ("images", "predicted", "threshold", "AP", "precision", "recall", "F1"):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        scores = (row[key] for key in ("threshold", "ap", "precision", "recall", "f1"))
        figures = ("–" if each is None else f"{each:.4f}" for each in scores)
        table.add_row(Text(printable(name)), str(row["images"]), str(row["predicted"]), *figures)
    return table


def table_of_test(classes: Sequence[str], counts: "ClassCounts | LabelScores") -> Table:
    """The table of the test: accuracy of each class, or the scores of each label."""
    from graft.learning.label_scores import LabelScores

    return label_table(classes, counts) if isinstance(counts, LabelScores) else accuracy_table(classes, counts)


def class_table(classes: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per class that has images; of more than 40 classes those with the lowest F1.

    Args:
        classes: class name -> images, precision, recall, f1.
    """
    rows = {name: row for name, row in classes.items() if row["images"]}
    title = "per class"
    if len(rows) > MOST_CLASSES:
        title = f"the {MOST_CLASSES} of {len(rows)} classes with the lowest F1"
        rows = dict(sorted(rows.items(), key=lambda item: item[1]["f1"])[:MOST_CLASSES])
    table = Table(title=title, title_justify="left")
    table.add_column("class", overflow="fold")
    for name in ("images", "accuracy = recall", "precision", "F1"):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        figures = (f"{row[key]:.4f}" for key in ("recall", "precision", "f1"))
        table.add_row(Text(printable(name)), str(row["images"]), *figures)
    return table


def most_confused(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """ "roses as tulips 14×, …": the true and predicted classes that are confused most; empty without mistakes."""
    wrong = [
        (count, true, predicted)
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    most = sorted(wrong, key=lambda each: -each[0])[:MOST_MISTAKES]
    return ", ".join(f"{printable(classes[t])} as {printable(classes[p])} {count}×" for count, t, p in most)


def confusion_csv(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """The confusion matrix as CSV: one row per true class, one column per predicted class."""
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow(["true \\ predicted", *classes])
    for name, row in zip(classes, confusion, strict=True):
        writer.writerow([name, *row])
    return text.getvalue()
