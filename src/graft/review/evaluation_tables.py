"""The metrics of an evaluation as tables: overall, per class, and the most confused pairs of classes."""

import io
from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from graft.system.escaping import CsvWriter, printable

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
}


def overall_table(figures: Mapping[str, float]) -> Table:
    """One row a figure; `figures` by their names, which `TITLES` explains as far as they are Graft's own."""
    table = Table(show_header=False)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(TITLES.get(name, name), f"{value:.4f}")
    return table


def class_table(classes: Mapping[str, Mapping[str, float]]) -> Table:
    """One row a class that has images; of more than 40 those with the lowest F1.

    Args:
        classes: class name -> images, precision, recall, f1.
    """
    rows = {name: row for name, row in classes.items() if row["images"]}
    title = "class by class"
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
    """One row a true class, one column a predicted one."""
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow(["true \\ predicted", *classes])
    for name, row in zip(classes, confusion, strict=True):
        writer.writerow([name, *row])
    return text.getvalue()
