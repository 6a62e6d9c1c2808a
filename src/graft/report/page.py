"""A comparison of runs as one HTML file without any dependency: no network, no server, no other file."""

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from graft.config.metrics import direction
from graft.errors import DataError
from graft.learning.metrics_csv import read_metrics
from graft.report.comparison import Column, Row, columns, directions, short, telling_apart
from graft.report.summary import Json, Unreadable
from graft.review.record import FILE, LARGEST, Record, read_record
from graft.system.escaping import printable

TEMPLATE = Path(__file__).with_name("page.html.jinja")

DETAILED = 50
"""Number of rows, the best ones, with curves, matrices and predictions on the page; the table has all rows."""

MEMORY = 2**27
"""Largest size of all records on a page, in bytes."""

LARGEST_TABLE = 2**25
"""Largest metrics.csv whose curves are shown, in bytes; in memory it takes ten times that."""

NAMED = 40
"""Largest number of unreadable files that are named."""

POINTS = 120
"""Largest number of points of a learning curve; longer ones are thinned evenly."""

CURVES = ("val/acc", "val/map", "val/loss", "train/acc", "train/f1_micro", "train/loss")
CELLED, LISTED = 30, 40
"""Largest number of classes whose confusion matrix is shown whole, and that are shown by accuracy."""

DISAGREEMENTS = 24


@dataclass(frozen=True)
class Page:
    """The HTML page, and the files of runs that could not be read for it."""

    text: str
    unreadable: list[Unreadable]

    def encode(self) -> bytes:
        """The content of the file in UTF-8; lone surrogates are escaped."""
        return self.text.encode("utf-8", "backslashreplace")


def as_page(found: Sequence[Row], title: str, unreadable: Sequence[Unreadable] = ()) -> Page:
    """The comparison page: the table of all rows, and the details of the best 50 (less than 2 MB).

    Args:
        found: from `comparison.rows`, the best first.
        title: plain text.
        unreadable: summaries that could not be read.
    """
    keys = telling_apart(found)
    details, damaged = read_details(found[:DETAILED])
    ignored = [*unreadable, *damaged]
    records = {number: detail.record for number, detail in enumerate(details) if detail.record is not None}
    content = {
        "runs": [detail.to_json(_label(found[number], keys)) for number, detail in enumerate(details)],
        "metrics": list(CURVES),
        "classes": classes_of(records),
        "disagreements": disagreements(records),
    }
    same, different = configurations(found)
    headers, cells = table(found, keys)
    text = template_of(TEMPLATE).render(
        title=title,
        summary=summary_line(found),
        unreadable=[str(each) for each in ignored],
        named=NAMED,
        columns=headers,
        rows=cells,
        detailed=DETAILED,
        different=different,
        same=same,
        data=script_data(content),
        script_hash=script_hash(TEMPLATE),
    )
    return Page(text, damaged)


def template_of(file: Path) -> Template:
    """The template of a page; values are escaped, control characters in them too."""
    environment = Environment(
        loader=FileSystemLoader(file.parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        keep_trailing_newline=True,
    )
    return environment.get_template(file.name)


def script_data(content: object) -> Markup:
    """Values as JSON within a script element: no "</script>" or "<!--" can appear in it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def script_hash(template: Path) -> str:
    """The only script that the page's policy lets run, by its SHA-256."""
    script = template.read_text(encoding="utf-8").rpartition("<script>")[2].partition("</script>")[0]
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@dataclass(frozen=True)
class Detail:
    """Details of a row on the page: the learning curves and the record of its best run."""

    number: int
    curves: dict[str, list[list[float]]]
    record: Record | None

    def to_json(self, label: str) -> dict[str, Any]:
        """The details as values for JSON, under a label."""
        shown: dict[str, Any] = {"label": label, "curves": self.curves}
        if self.record is None:
            return shown
        record = self.record
        several = record.sets is not None
        shown |= {"part": record.part, "images": record.images, "set": class_set(record), "several": several}
        shown["accuracy"] = [
            round(int(correct) / int(total), 4) if total else None
            for correct, total in zip(record.correct, record.totals, strict=True)
        ]
        if several:
            return shown
        count = len(record.classes)
        cells = zip(record.cells.tolist(), record.counts.tolist(), strict=True)
        if count <= CELLED:
            shown["confusion"] = [[*divmod(int(cell), count), number] for cell, number in cells]
        else:
            off = [[*divmod(int(cell), count), number] for cell, number in cells if cell // count != cell % count]
            shown["mixed"] = off[:12]
        return shown


def read_details(found: Sequence[Row]) -> tuple[list[Detail], list[Unreadable]]:
    """(details of each row's best run, unreadable files); missing files are no error."""
    details, unreadable = [], []
    room = MEMORY
    for number, row in enumerate(found):
        folder = Path(row.folder)
        record: Record | None = None
        curves: dict[str, list[list[float]]] = {}
        try:
            curves, damaged = learning_curves(folder / "metrics.csv")
            if damaged:
                unreadable.append(Unreadable(folder / "metrics.csv", f"{damaged} damaged lines"))
        except (OSError, DataError) as error:
            if not isinstance(error, FileNotFoundError):
                unreadable.append(Unreadable(folder / "metrics.csv", _reason(error)))
        try:
            record = read_record(folder, min(LARGEST, room))
            room -= record.nbytes if record is not None else 0
        except DataError as error:
            unreadable.append(Unreadable(folder / FILE, _reason(error)))
        details.append(Detail(number, curves, record))
    return details, unreadable


def _reason(error: OSError | DataError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def learning_curves(file: Path) -> tuple[dict[str, list[list[float]]], int]:
    """(metric of `CURVES` → (epochs, value) pairs, number of damaged lines), epochs counted in fractions from the start
    of training.

    Raises:
        OSError, DataError: as `read_metrics`.
    """
    table = read_metrics(file, LARGEST_TABLE)
    rows = [row for row in table.rows if all(map(math.isfinite, (row["step"], row.get("epoch", 0))))]
    ends = [row["step"] for row in rows if "train/loss" in row and row.get("epoch", 0) == 0]
    epoch = max(ends, default=0) or max((row["step"] for row in rows), default=0) or 1
    curves = {}
    for name in CURVES:
        points = [[round(row["step"] / epoch, 3), float(f"{row[name]:.5g}")] for row in rows if name in row]
        curves[name] = thinned([point for point in points if all(map(math.isfinite, point))])
    return {name: points for name, points in curves.items() if points}, table.damaged


def thinned(points: list[list[float]]) -> list[list[float]]:
    """At most `POINTS` of them, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    return [points[round(number * (len(points) - 1) / (POINTS - 1))] for number in range(POINTS)]


def class_set(record: Record) -> str:
    """A key for the classes of a record: predictions are compared only between runs of the same classes and task."""
    return json.dumps([record.sets is None, *record.classes], ensure_ascii=False)


def classes_of(records: Mapping[int, Record]) -> dict[str, dict[str, Any]]:
    """For each set of classes: their names, and which ones are shown by accuracy.

    All of few classes; of many those in which the runs differ most.
    """
    found: dict[str, dict[str, Any]] = {}
    for record in records.values():
        key = class_set(record)
        if key in found:
            continue
        alike = [other for other in records.values() if class_set(other) == key]
        shown = range(len(record.classes))
        if len(record.classes) > LISTED:
            spread = [_spread(alike, number) for number in shown]
            shown = sorted(sorted(shown, key=lambda number: -spread[number])[:LISTED])  # type: ignore[assignment]
        found[key] = {"names": list(record.classes), "shown": list(shown)}
    return found


def _spread(records: Sequence[Record], number: int) -> float:
    shares = [record.correct[number] / record.totals[number] for record in records if record.totals[number]]
    return float(max(shares) - min(shares)) if shares else 0.0


def disagreements(records: Mapping[int, Record]) -> list[dict[str, Any]]:
    """Images that runs of the same classes predict differently, with each run's prediction; most disagreement first.

    Only images of which a run has a thumbnail: a sample that is the same in every run, and each run's worst.
    """
    answers = {number: _answers(record) for number, record in records.items()}
    images: dict[tuple[str, int], list[int]] = {}
    for number, record in records.items():
        for key in record.thumbnails:
            images.setdefault((class_set(record), key), []).append(number)
    found: list[dict[str, Any]] = []
    for (classes, key), holders in images.items():
        predictions = [
            (number, *answers[number][key])
            for number, record in records.items()
            if key in answers[number] and class_set(record) == classes
        ]
        counts = Counter(answer for _, _, answer, _ in predictions)
        if len(counts) < 2:
            continue
        name, picture = records[holders[0]].thumbnails[key]
        disagreement = 1 - max(counts.values()) / len(predictions)
        found.append(
            {
                "disagreement": disagreement,
                "name": name,
                "true": predictions[0][1],
                "picture": base64.b64encode(picture).decode(),
                "predictions": [
                    {
                        "class": answer,
                        "correct": answer == predictions[0][1],
                        "runs": [[number, round(sure, 2)] for number, _, other, sure in predictions if other == answer],
                    }
                    for answer, _ in counts.most_common()
                ],
            }
        )
    return sorted(found, key=lambda image: (-image["disagreement"], image["name"]))[:DISAGREEMENTS]


def _answers(record: Record) -> dict[int, tuple[str, str, float]]:
    """Digest -> (true class or labels, predicted ones, confidence)."""
    columns = (record.digests, record.labels, record.predicted, record.confidence)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {key: (record.text(label), record.text(predicted), sure) for key, label, predicted, sure in rows}


def summary_line(found: Sequence[Row]) -> str:
    """The number of configurations and runs, and a note if details of some are not on the page."""
    runs, finished = sum(len(row.members) for row in found), sum(len(row.finished) for row in found)
    text = f"{len(found):,} configurations, {runs:,} runs"
    text += f", {runs - finished:,} of them not finished" if runs > finished else ""
    if len(found) > DETAILED:
        text += f" · curves, matrices and predictions of the best {DETAILED}"
    return text


@dataclass(frozen=True)
class Header:
    """A column of the table; `best_is_most`: a first click on it sorts the largest value to the top."""

    name: str
    numeric: bool
    best_is_most: bool


@dataclass(frozen=True)
class Cell:
    """A cell of the table and the value that it is sorted by."""

    text: str
    key: Json
    numeric: bool


def table(found: Sequence[Row], keys: Sequence[str]) -> tuple[list[Header], list[list[Cell]]]:
    """The sortable table: its columns, and the cells of each row.

    Args:
        found: the rows.
        keys: that tell them apart; others that follow from these are listed below the table.
    """
    shown = [column for column in columns(found) if not column.minor or column.name in keys]
    shown.append(Column("folder", lambda row: row.folder, lambda row: row.folder))
    headers = [Header("#", numeric=True, best_is_most=False)]
    known = directions(found)
    for column in shown:
        best_is_most = column.numeric and "/" in column.name and direction(column.name, known) == "max"
        headers.append(Header(column.name, column.numeric, best_is_most))
    cells = [
        [_cell(str(number), number, True), *(_cell(each.text(row), each.value(row), each.numeric) for each in shown)]
        for number, row in enumerate(found, start=1)
    ]
    return headers, cells


def _cell(text: str, value: Json, numeric: bool) -> Cell:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    key = value if number and math.isfinite(float(value)) else ("" if number or value is None else text)  # type: ignore[arg-type]
    return Cell(text, str(key), numeric)


def _label(row: Row, keys: Sequence[str]) -> str:
    """The label of a row: its values of `keys`; groups without their names, other keys with them."""
    values = {key: short(row.choices.get(key)) for key in keys}
    return ", ".join(f"{printable(key)}={value}" if "." in key else value for key, value in values.items())


Same = list[tuple[str, str]]
Different = list[tuple[str, list[tuple[str, list[int]]]]]


def configurations(found: Sequence[Row]) -> tuple[Same, Different]:
    """(same, different): the value of each choice that is the same in all rows; the values of each other choice, with
    the numbers of the rows that have them."""
    keys = list(dict.fromkeys(key for row in found for key in row.choices))
    same: Same = []
    different: Different = []
    for key in keys:
        numbers: dict[str, list[int]] = {}
        for number, row in enumerate(found, start=1):
            numbers.setdefault(short(row.choices.get(key)), []).append(number)
        if len(numbers) == 1:
            same.append((key, next(iter(numbers))))
        else:
            different.append((key, list(numbers.items())))
    return same, different
