"""Runs side by side as one HTML page that needs nothing else: no network, no server, no file beside it."""

import base64
import csv
import html
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.files import read_regular
from graft.review.comparison import METRICS, Row, differing
from graft.review.record import Record, read_record

TEMPLATE = Path(__file__).with_name("page.html")

DETAILED = 50
"""Rows, the best ones, with curves, matrices and predictions on the page; the table has all."""

POINTS = 120
"""Of a learning curve; longer ones are thinned evenly."""

CURVES = ("val/acc", "val/loss", "train/acc", "train/loss")
CELLED, LISTED = 30, 40
"""Classes up to which a confusion matrix is shown whole, and classes shown by accuracy at most."""

DISAGREEMENTS = 24


def as_page(found: Sequence[Row], title: str) -> str:
    """The page.

    It holds everything of the best 50 rows (under 2 MB in all) and the table of all of them.

    Args:
        found: as from `comparison.rows`, the best first.
        title: plain text.
    """
    keys = differing(found)
    details = [detail_of(number, row) for number, row in enumerate(found[:DETAILED])]
    records = {number: detail.record for number, detail in enumerate(details) if detail.record is not None}
    content = {
        "runs": [detail.told(_label(found[number], keys)) for number, detail in enumerate(details)],
        "classes": classes_of(records),
        "disagreements": disagreements(records),
    }
    same, different = configurations(found)
    parts = {
        "TITLE": html.escape(title),
        "SUMMARY": html.escape(summary_line(found)),
        "TABLE": table(found, keys),
        "DIFFERENT": different,
        "SAME": same,
        # no "</script>" or "<!--" can appear in it
        "DATA": json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    pieces = page.split("@@")  # text, name, text, name, …
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


@dataclass(frozen=True)
class Detail:
    """What the page shows of a row: the learning curves and the record of its best run."""

    number: int
    curves: dict[str, list[list[float]]]
    record: Record | None

    def told(self, label: str) -> dict[str, Any]:
        """As plain values."""
        shown: dict[str, Any] = {"label": label, "curves": self.curves}
        if self.record is None:
            return shown
        record = self.record
        shown |= {"part": record.part, "images": record.images, "set": class_set(record)}
        shown["accuracy"] = [
            round(int(correct) / int(total), 4) if total else None
            for correct, total in zip(record.correct, record.totals, strict=True)
        ]
        count = len(record.classes)
        cells = zip(record.cells.tolist(), record.counts.tolist(), strict=True)
        if count <= CELLED:
            shown["confusion"] = [[*divmod(int(cell), count), number] for cell, number in cells]
        else:
            off = [[*divmod(int(cell), count), number] for cell, number in cells if cell // count != cell % count]
            shown["mixed"] = off[:12]
        return shown


def detail_of(number: int, row: Row) -> Detail:
    """Read what the row's best run left behind; nothing of it need be there."""
    folder = Path(row.folder)
    return Detail(number, learning_curves(folder / "metrics.csv"), read_record(folder))


def learning_curves(file: Path) -> dict[str, list[list[float]]]:
    """(epochs, value) of every metric of `CURVES`, epochs counted in fractions from the start of training."""
    try:
        text = io.StringIO(read_regular(file).decode(), newline="")
        rows = [row for row in csv.DictReader(text) if row.get("step")]
        ends = [float(row["step"]) for row in rows if row.get("train/loss") and float(row.get("epoch") or 0) == 0]
        epoch = max(ends, default=0) or max((float(row["step"]) for row in rows), default=0) or 1
        curves = {}
        for name in CURVES:
            points = [
                [round(float(row["step"]) / epoch, 3), float(f"{float(row[name]):.5g}")]
                for row in rows
                if row.get(name)
            ]
            curves[name] = thinned([point for point in points if math.isfinite(point[1])])
    except (OSError, ValueError, UnicodeDecodeError):
        return {}
    return {name: points for name, points in curves.items() if points}


def thinned(points: list[list[float]]) -> list[list[float]]:
    """At most `POINTS` of them, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    return [points[round(number * (len(points) - 1) / (POINTS - 1))] for number in range(POINTS)]


def class_set(record: Record) -> str:
    """A key for the classes of a record: runs are only compared where they tell the same classes apart."""
    return json.dumps(record.classes, ensure_ascii=False)


def classes_of(records: Mapping[int, Record]) -> dict[str, dict[str, Any]]:
    """For each set of classes: their names, and which are shown by accuracy (all of few; of many those in which runs
    differ most)."""
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
    """Images that runs of the same classes see differently, the most divided first, with who said what.

    Those of which some run kept a thumbnail: a sample that is the same in every run, and each run's worst.
    """
    answers = {number: _answers(record) for number, record in records.items()}
    images: dict[tuple[str, int], list[int]] = {}
    for number, record in records.items():
        for key in record.thumbnails:
            images.setdefault((class_set(record), key), []).append(number)
    found: list[dict[str, Any]] = []
    for (classes, key), holders in images.items():
        said = [
            (number, *answers[number][key])
            for number, record in records.items()
            if key in answers[number] and class_set(record) == classes
        ]
        counts = Counter(answer for _, _, answer, _ in said)
        if len(counts) < 2:
            continue
        name, picture = records[holders[0]].thumbnails[key]
        names = records[holders[0]].classes
        divided = 1 - max(counts.values()) / len(said)
        found.append(
            {
                "divided": divided,
                "name": name,
                "true": names[said[0][1]],
                "picture": base64.b64encode(picture).decode(),
                "said": [
                    {
                        "class": names[answer],
                        "right": answer == said[0][1],
                        "runs": [[number, round(sure, 2)] for number, _, other, sure in said if other == answer],
                    }
                    for answer, _ in counts.most_common()
                ],
            }
        )
    return sorted(found, key=lambda image: (-image["divided"], image["name"]))[:DISAGREEMENTS]


def _answers(record: Record) -> dict[int, tuple[int, int, float]]:
    columns = (record.digests, record.labels, record.predicted, record.confidence)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {key: (label, predicted, sure) for key, label, predicted, sure in rows}


def summary_line(found: Sequence[Row]) -> str:
    """How many of what, and what the page leaves out."""
    runs, finished = sum(len(row.statuses) for row in found), sum(len(row.seeds) for row in found)
    said = f"{len(found):,} configurations, {runs:,} runs"
    said += f", {runs - finished:,} of them not finished" if runs > finished else ""
    if len(found) > DETAILED:
        said += f" · curves, matrices and predictions of the best {DETAILED}"
    return said


def table(found: Sequence[Row], keys: Sequence[str]) -> str:
    """The sortable table; a cell's data-value is what it sorts by."""
    header = ["", "#", *keys, "runs", *METRICS, "seconds", "folder"]
    numeric = {"#", "runs", *METRICS, "seconds"}
    cells = [
        f'<th scope="col"{_class(name in numeric)}>{f"<button>{html.escape(name)}</button>" if name else ""}</th>'
        for name in header
    ]
    lines = [f"<thead><tr>{''.join(cells)}</tr></thead><tbody>"]
    for number, row in enumerate(found):
        choose = f'<td><input type="checkbox" data-run="{number}" aria-label="show run {number + 1}"></td>'
        shown = [
            choose if number < DETAILED else "<td></td>",
            _cell(str(number + 1), number + 1, numeric=True),
            *(_cell(_plain(row.choices.get(key)), row.choices.get(key)) for key in keys),
            _cell(_runs(row), len(row.seeds), numeric=True),
            *(_cell(row.text(metric), row.mean(metric), numeric=True) for metric in METRICS),
            _cell(f"{row.seconds:,.1f}", row.seconds, numeric=True),
            _cell(row.folder, row.folder),
        ]
        lines.append(f"<tr>{''.join(shown)}</tr>")
    return "\n".join([*lines, "</tbody>"])


def _runs(row: Row) -> str:
    others = Counter(status for status in row.statuses if status != "finished")
    return f"{len(row.seeds)}" + "".join(f" +{count} {status}" for status, count in sorted(others.items()))


def _cell(text: str, value: object, *, numeric: bool = False) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    key = value if number and math.isfinite(float(value)) else ("" if number or value is None else text)  # type: ignore[arg-type]
    return f'<td{_class(numeric)} data-value="{html.escape(str(key))}">{html.escape(text)}</td>'


def _class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _plain(value: object) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _label(row: Row, keys: Sequence[str]) -> str:
    return ", ".join(_plain(row.choices.get(key)) if "." not in key else f"{key}={_plain(row.choices.get(key))}"
                     for key in keys)  # fmt: skip


def configurations(found: Sequence[Row]) -> tuple[str, str]:
    """(same, different): every choice that is the same in all rows, and every one that is not, as table bodies."""
    keys = list(dict.fromkeys(key for row in found for key in row.choices))
    same, different = [], []
    for key in keys:
        numbers: dict[str, list[int]] = {}
        for number, row in enumerate(found, start=1):
            numbers.setdefault(_plain(row.choices.get(key)), []).append(number)
        name = f'<th scope="row">{html.escape(key)}</th>'
        if len(numbers) == 1:
            same.append(f"<tr>{name}<td>{html.escape(next(iter(numbers)))}</td></tr>")
        else:
            different.append(f"<tr>{name}<td>{_who_has(numbers)}</td></tr>")
    return "\n".join(same), "\n".join(different)


def _who_has(numbers: Mapping[str, Sequence[int]], most: int = 12) -> str:
    """Each value with the rows that have it."""
    shown = [
        f"<span><code>{html.escape(value)}</code> "
        + (f"in {', '.join(map(str, rows))}" if len(rows) <= most else f"in {len(rows)} rows")
        + "</span>"
        for value, rows in list(numbers.items())[:most]
    ]
    return " ".join(shown) + (f" and {len(numbers) - most} more values" if len(numbers) > most else "")
