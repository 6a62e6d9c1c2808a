"""Predictions per image: a table of the first ones, and a file written line by line."""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.table import Table
from rich.text import Text

from graft.errors import ConfigError
from graft.models.wordnet import wordnet_ids
from graft.system.escaping import CsvWriter, printable
from graft.system.files import writing_atomically


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, most probable first.

    Attributes:
        image: its name.
        classes: names of the classes.
        probabilities: of the classes.
        indices: of the classes, in the order of the network's outputs.
        true: name of the true class, if known.
        wordnet: WordNet ids of the classes, if they are ImageNet's and timm is installed.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    indices: tuple[int, ...]
    true: str | None = None
    wordnet: tuple[str, ...] = ()

    @property
    def marked(self) -> tuple[str, ...]:
        """Names of the classes for people."""
        return self.classes

    def columns(self) -> dict[str, Any]:
        """The cells of its line in a CSV file, by the names of their columns."""
        ranks = [*zip(self.classes, self.indices, map(_figure, self.probabilities), strict=True)]
        first, index, probability = ranks[0]
        row: dict[str, Any] = {"image": self.image}
        if self.true is not None:
            row["true"] = self.true
        row |= {"predicted": first, "index": index, "probability": probability}
        if self.true is not None:
            row["correct"] = int(first == self.true)
        for rank, (name, index, figure) in enumerate(ranks[1:], 2):
            row |= {f"class_{rank}": name, f"index_{rank}": index, f"probability_{rank}": figure}
        names = enumerate(self.wordnet, 1)
        return row | {f"wordnet_{rank}" if rank > 1 else "wordnet": name for rank, name in names}

    def values(self) -> dict[str, Any]:
        """Its object in a JSON file."""
        ranked = zip(self.classes, self.indices, map(_figure, self.probabilities), strict=True)
        values: dict[str, Any] = {"image": self.image}
        if self.true is not None:
            values |= {"true": self.true, "correct": self.classes[0] == self.true}
        values["predictions"] = [
            {"class": name, "index": index, "probability": float(figure)} for name, index, figure in ranked
        ]
        for entry, name in zip(values["predictions"], self.wordnet, strict=False):
            entry["wordnet"] = name
        return values


SEPARATOR = ";"
"""Between the labels of an image in a CSV file."""


@dataclass(frozen=True)
class LabelPrediction(Prediction):
    """The predicted labels of an image, any number of them, and the most probable ones.

    Attributes:
        labels: names of the predicted ones, in the order of the network's outputs: those whose probability is at least
            their threshold.
        by_class: name -> probability of every label.
        thresholds: name -> threshold of every label.
        true_labels: names of those that the image has, if known.
    """

    labels: tuple[str, ...] = ()
    by_class: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    true_labels: tuple[str, ...] | None = None

    @property
    def marked(self) -> tuple[str, ...]:
        """Names of the most probable labels, the predicted ones with a bullet."""
        return tuple(f"• {name}" if name in self.labels else name for name in self.classes)

    def _truth(self) -> dict[str, Any]:
        if self.true_labels is None:
            return {}
        return {"true": list(self.true_labels), "correct": set(self.true_labels) == set(self.labels)}

    def columns(self) -> dict[str, Any]:
        row: dict[str, Any] = {"image": self.image, "labels": SEPARATOR.join(self.labels)}
        if truth := self._truth():
            row |= {"true": SEPARATOR.join(truth["true"]), "correct": int(truth["correct"])}
        return row | {f"probability/{name}": _figure(each) for name, each in self.by_class.items()}

    def values(self) -> dict[str, Any]:
        ranked = sorted(self.by_class.items(), key=lambda item: -item[1])
        return {"image": self.image, "labels": list(self.labels), **self._truth()} | {
            "predictions": [
                {"class": name, "probability": float(_figure(each)), "threshold": float(_figure(self.thresholds[name]))}
                for name, each in ranked
            ]
        }


Write = Callable[[Prediction], None]


@contextmanager
def writing(path: Path) -> Iterator[Write]:
    """A context with a function that writes predictions; the file appears when all are written.

    `.csv` has a line per image, `.json` one array of objects, `.jsonl` an object per line.

    Raises:
        ConfigError: another ending, or a path that cannot be written to.
    """
    form = format_of(path)
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(writing_atomically(path))
        except OSError as error:
            raise ConfigError(f"output={path}: cannot be written ({error.strerror}).") from error
        file = io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", newline="", write_through=True)
        stack.callback(file.detach)
        yield stack.enter_context(form(file))


def format_of(path: Path) -> Callable[[TextIO], AbstractContextManager[Write]]:
    """The writer of files with this ending; raises ConfigError for an unknown one."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"output={path}: unknown ending. There are {', '.join(FORMATS)}.")
    return FORMATS[path.suffix.lower()]


@contextmanager
def _csv(file: TextIO) -> Iterator[Write]:
    """A line per image: image, [true,] predicted, index, probability, [correct,] class_2, index_2, probability_2, …,
    [wordnet, wordnet_2, …]; with several labels per image: image, labels, [true, correct,] probability/CLASS, ….

    Names are escaped so that no spreadsheet evaluates them; `escaping.from_csv_cell` undoes it.
    """
    writer = CsvWriter(file)
    begun = False

    def write(prediction: Prediction) -> None:
        nonlocal begun
        row = prediction.columns()
        if not begun:
            writer.writerow(row)
            begun = True
        writer.writerow(row.values())

    yield write


@contextmanager
def _json(file: TextIO) -> Iterator[Write]:
    file.write("[")
    separator = "\n"

    def write(prediction: Prediction) -> None:
        nonlocal separator
        file.write(separator + _object(prediction))
        separator = ",\n"

    yield write
    file.write("\n]\n")


@contextmanager
def _json_lines(file: TextIO) -> Iterator[Write]:
    def write(prediction: Prediction) -> None:
        file.write(_object(prediction) + "\n")

    yield write


def _object(prediction: Prediction) -> str:
    return json.dumps(prediction.values(), ensure_ascii=False)


def _figure(probability: float) -> str:
    return f"{probability:.6g}"


FORMATS: dict[str, Callable[[TextIO], AbstractContextManager[Write]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
}


def prediction_table(shown: Sequence[Prediction]) -> Table:
    """One row per image with one line per class."""
    table = Table(show_lines=any(len(each.classes) > 1 for each in shown))
    table.add_column("image", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("probability", justify="right")
    for each in shown:
        figures = "\n".join(f"{probability:.2%}" for probability in each.probabilities)
        table.add_row(Text(printable(each.image)), Text("\n".join(map(printable, each.marked))), figures)
    return table


def rank(
    images: Sequence[str],
    probabilities: Sequence[Sequence[float]],
    labels: Sequence[Sequence[int]],
    classes: Sequence[str],
    true: Sequence[int] | None = None,
) -> Iterator[Prediction]:
    """The predictions of a batch.

    Args:
        images: N names.
        probabilities, labels: of the k most probable classes of each, best first, `[N][k]`.
        classes: names of all classes.
        true: class indices of the images, if known.
    """
    ids = wordnet_ids(tuple(classes))
    for row, image in enumerate(images):
        names = tuple(classes[label] for label in labels[row])
        label = None if true is None else classes[true[row]]
        wordnet = tuple(ids[label] for label in labels[row]) if ids else ()
        yield Prediction(image, names, tuple(probabilities[row]), tuple(labels[row]), label, wordnet)


def rank_labels(
    images: Sequence[str],
    probabilities: Sequence[Sequence[float]],
    classes: Sequence[str],
    thresholds: Sequence[float],
    topk: int,
    true: Sequence[Sequence[int]] | None = None,
) -> Iterator[LabelPrediction]:
    """The predictions of a batch of images with several labels.

    Args:
        images: N names.
        probabilities: of all C labels, `[N][C]`.
        classes: names of the labels.
        thresholds: of the labels.
        topk: number of the most probable labels.
        true: zeros and ones, `[N][C]`, if known.
    """
    limits = dict(zip(classes, thresholds, strict=True))
    for row, image in enumerate(images):
        each = probabilities[row]
        best = sorted(range(len(classes)), key=lambda label: -each[label])[:topk]
        yield LabelPrediction(
            image,
            tuple(classes[label] for label in best),
            tuple(each[label] for label in best),
            tuple(best),
            labels=tuple(name for name, value in zip(classes, each, strict=True) if value >= limits[name]),
            by_class=dict(zip(classes, each, strict=True)),
            thresholds=limits,
            true_labels=None if true is None else tuple(classes[i] for i, value in enumerate(true[row]) if value),
        )
