"""A table of runs: those that differ only in their seed are one row, with mean ± standard deviation."""

import io
import json
import math
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from graft.config.metrics import direction
from graft.config.task import SINGLE_LABEL, TASKS
from graft.report.summary import Json, Summary
from graft.system.escaping import CsvWriter, markdown, printable

UNFINISHED = ("failed", "pruned", "interrupted")

LONGEST = 160
"""Largest number of characters in a cell; compare.csv has whole values."""
WRAPPED = 24
"""Largest number of characters of a choice that a console's table makes room for on one line."""
FRAME = 3
"""Characters around a cell on a console."""


@dataclass(frozen=True)
class Row:
    """Runs of one experiment: the same configuration, classes, data and metric.

    Attributes:
        members: all of them, finished or not.
    """

    members: tuple[Summary, ...]

    @cached_property
    def finished(self) -> list[Summary]:
        """The finished runs, which alone count in the metrics."""
        return [run for run in self.members if run.status == "finished"]

    @cached_property
    def choices(self) -> dict[str, Json]:
        """The configuration without the seed, and the data."""
        known = next((run for run in self.members if run.classes), self.members[0])
        classes = f"{len(known.classes)}: {', '.join(known.classes)}" if known.classes else None
        corrected = ", ".join(f"{count:,} {what}" for what, count in known.corrections.items())
        return (
            dict(known.config)
            | ({CORRECTED: corrected} if corrected else {})
            | {"data.root": known.root, CLASSES: classes, CONTENT: known.content[:8] or None}
        )

    @property
    def metric(self) -> str:
        """The metric that the experiment optimizes; never one of the test images, by which no run may be chosen."""
        return str(self.choices.get("optimized_metric") or "val/acc").replace("test/", "val/", 1)

    @cached_property
    def higher_is_better(self) -> dict[str, bool]:
        """The directions of the configured metrics."""
        return {name: higher for run in self.members for name, higher in run.higher_is_better.items()}

    @cached_property
    def values(self) -> dict[str, list[float]]:
        """Metric name → its values in the finished runs that have it."""
        found: dict[str, list[float]] = defaultdict(list)
        for run in self.finished:
            for name, value in run.metrics.items():
                found[name].append(value)
        return dict(found)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the finished runs."""
        return [run.seed for run in self.finished]

    @property
    def statuses(self) -> list[str]:
        """The statuses of all runs."""
        return [run.status for run in self.members]

    @property
    def seconds(self) -> float:
        """Mean duration of all runs."""
        return mean([run.seconds for run in self.members])

    @property
    def epochs(self) -> str:
        """Number of epochs of the finished runs: "5", or "3–5" if they differ."""
        counts = sorted({run.epochs for run in self.finished})
        return "–".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "–"

    @property
    def validates_on_test(self) -> bool:
        """Whether any run was validated on the test images."""
        return any(run.validates_on_test for run in self.members)

    @cached_property
    def best(self) -> Summary:
        """The run with the best value of `metric`."""
        mode = direction(self.metric, self.higher_is_better)
        return max(self.finished or self.members, key=lambda run: goodness(run.metrics.get(self.metric), mode))

    @property
    def folder(self) -> str:
        """The folder of the best run."""
        return str(self.best.folder)

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint of the best run; None if there is none."""
        return str(self.best.folder / self.best.checkpoint) if self.best.checkpoint else None

    def runs(self) -> str:
        """Number of finished runs, and the status of the others: "2 (+1 failed)"."""
        others = Counter(status for status in self.statuses if status != "finished")
        counted = ", ".join(f"+{count} {status}" for status, count in sorted(others.items()))
        return f"{len(self.finished)}" + (f" ({counted})" if counted else "")

    def text(self, metric: str) -> str:
        """ "0.912 ± 0.013", or the single value, or "–"."""
        values = self.values.get(metric, [])
        if not values:
            return "–"
        return figure(mean(values)) + (f" ± {figure(deviation(values))}" if len(values) > 1 else "")

    def mean(self, metric: str) -> float:
        """Mean of a metric over the finished runs; NaN if none has it."""
        return mean(self.values.get(metric, []))


CORRECTED = "corrected images"
"""The column with the number of images that data.corrections relabels and excludes."""

CLASSES, CONTENT = DERIVED = ("classes", "data content")
"""Columns that are needed only to distinguish rows which are otherwise equal."""


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN for an empty list."""
    try:
        return statistics.fmean(values)
    except OverflowError:
        return math.inf
    except (statistics.StatisticsError, ValueError):  # no values, or infinities of both signs
        return math.nan


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN if a value is not finite."""
    try:
        return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    except OverflowError:
        return math.inf


def figure(value: float) -> str:
    """`value` with three decimals, fewer if it is large."""
    return f"{value:.3f}" if abs(value) < 1e6 or not math.isfinite(value) else f"{value:.3g}"


def goodness(value: float | None, mode: str) -> float:
    """A number that is larger for a better `value`; minus infinity if it is missing or NaN.

    Args:
        value: of a metric.
        mode: "max" or "min", the direction in which the metric improves.
    """
    if value is None or math.isnan(value):
        return -math.inf
    return value if mode == "max" else -value


def rows(summaries: Iterable[Summary], sort: str | None = None) -> list[Row]:
    """One row per experiment, the best mean of `sort` first.

    Args:
        summaries: of the runs.
        sort: a metric; None: what the runs optimize (`ordering`).
    """
    found = [Row(tuple(members)) for members in experiments(summaries)]
    metric = sort or ordering(found)
    mode = direction(metric, directions(found))
    return sorted(found, key=lambda row: -goodness(row.mean(metric), mode))


def directions(found: Iterable[Row]) -> dict[str, bool]:
    """Whether higher is better, for each configured metric of the rows."""
    return {name: higher for row in found for name, higher in row.higher_is_better.items()}


def ordering(found: Sequence[Row]) -> str:
    """The metric that most rows optimize."""
    counts = Counter(row.metric for row in found)
    return min(counts, key=lambda metric: (-counts[metric], metric), default="val/acc")


def experiments(summaries: Iterable[Summary]) -> list[list[Summary]]:
    """Runs that may be averaged: the same configuration but for the seed, the same classes, the same data.

    A run that failed before its data were read belongs to the experiment of its configuration, if there is just one.
    """
    known: dict[tuple[str, str, str], list[Summary]] = {}
    early: dict[tuple[str, str, str], list[Summary]] = {}
    for run in summaries:
        configuration = json.dumps(run.config, sort_keys=True)
        key = (configuration, json.dumps(run.classes), run.content or f"at {run.root}")
        (known if run.classes else early).setdefault(key, []).append(run)
    for key, runs in early.items():
        alike = [members for other, members in known.items() if other[0] == key[0]]
        alike = [members for members in alike if any(run.root == runs[0].root for run in members)] or alike
        if len(alike) == 1:
            alike[0].extend(runs)
        else:
            known[key] = runs
    return list(known.values())


def significance(found: Sequence[Row], metric: str) -> str | None:
    """A sentence on whether the first row is significantly better than the second; None without a second.

    The runs are paired by seed (and fold) and a two-sided paired t-test is made over the pairs' differences. Being
    first is chance too where many rows were tried: the p-value takes no account of that.
    """
    if len(found) < 2:
        return None
    first, second = (
        {(run.seed, run.fold): run.metrics[metric] for run in row.finished if metric in run.metrics}
        for row in found[:2]
    )
    if not second:
        return None
    both = first.keys() & second.keys()
    pairs = sorted((pair for pair in both if math.isfinite(first[pair] - second[pair])), key=str)
    what = f"First against second by {metric}"
    if len(pairs) < 2:
        return f"{what}: {len(pairs) or 'no'} seed in common; with more (seed=0,1,2) the difference can be tested."
    differences = [first[pair] - second[pair] for pair in pairs]
    average, sd = mean(differences), deviation(differences)
    result = f"{what}: {average:+.4f} ± {sd:.4f}, paired by seed"
    if sd < 1e-12 * max(map(abs, differences), default=0) or not any(differences):
        return f"{result}, n = {len(pairs)}: the same difference for every seed, so there is nothing to test."
    from scipy.stats import ttest_rel

    p = ttest_rel([first[pair] for pair in pairs], [second[pair] for pair in pairs]).pvalue
    return f"{result}: paired t-test, n = {len(pairs)}, p = {p:.2g}."


def differing(found: Sequence[Row]) -> list[str]:
    """Every choice in which the rows differ; if they do not differ, the groups that identify the run.

    Overridden and searched keys come first, then the options of groups, then keys that follow from these.
    """
    first, others = _differing(found)
    return [*first, *others]


def telling_apart(found: Sequence[Row]) -> list[str]:
    """As few of the `differing` keys as tell each row from the others: a key that follows from those before it is left
    out."""
    keys = differing(found)
    parts, told, chosen = [0] * len(found), 1, []
    for key in keys:
        numbers: dict[tuple[int, str], int] = {}
        finer = [
            numbers.setdefault((part, json.dumps(row.choices.get(key))), len(numbers))
            for part, row in zip(parts, found, strict=True)
        ]
        if len(numbers) > told:
            parts, told = finer, len(numbers)
            chosen.append(key)
    return chosen or keys


def _differing(found: Sequence[Row]) -> tuple[list[str], list[str]]:
    """(overridden or searched keys and options of groups; all others)."""
    keys = [key for key in _keys(found) if len({json.dumps(row.choices.get(key)) for row in found}) > 1]
    words = dict.fromkeys(word for row in found for run in row.members for word in run.overrides)
    overridden = tuple(dict.fromkeys(word.lstrip("+~").partition("=")[0] for word in words))
    searched = [
        key for name in overridden for key in keys if key == name or ("." in name and key.startswith(f"{name}."))
    ]
    groups = [key for key in keys if "." not in key and key not in DERIVED]
    first = list(dict.fromkeys([*searched, *groups]))
    others = [key for key in keys if key not in (*first, *DERIVED)]
    for key in DERIVED:
        shown = Counter(json.dumps([row.choices.get(name) for name in (*first, *others)]) for row in found)
        first += [key] if key in keys and max(shown.values()) > 1 else []
    if not first:
        first, others = others, []
    return first or [key for key in ("model", "data", "strategy") if any(key in row.choices for row in found)], others


def _keys(found: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in found for key in row.choices))


@dataclass(frozen=True)
class Column:
    """A column of the tables.

    Attributes:
        name: its header.
        text: the cell of a row.
        value: the value by which the cell is sorted.
        numeric: whether its values are numbers.
        choice: whether it is a key of the configuration; where the table is too wide, such columns are omitted.
        minor: whether it follows from other columns.
    """

    name: str
    text: Callable[[Row], str]
    value: Callable[[Row], Json]
    numeric: bool = False
    choice: bool = False
    minor: bool = False


def columns(found: Sequence[Row]) -> list[Column]:
    """The columns: differences, number of runs, metrics; then differences that follow from the others."""
    first, others = _differing(found)
    metrics = dict.fromkeys([ordering(found), *(row.metric for row in found), *usual_metrics(found)])
    shown = [_choice(key) for key in first]
    shown.append(Column("runs", Row.runs, lambda row: len(row.finished), numeric=True))
    if len({row.epochs for row in found if row.finished}) > 1:
        shown.append(Column("epochs", lambda row: row.epochs, _most_epochs, numeric=True))
    if any(row.validates_on_test for row in found):
        shown.append(Column("validated on", _validated_on, _validated_on))
    shown += [_metric(name) for name in metrics]
    shown.append(Column("seconds", lambda row: f"{row.seconds:,.1f}", lambda row: row.seconds, numeric=True))
    return shown + [_choice(key, minor=True) for key in others]


def usual_metrics(found: Sequence[Row]) -> list[str]:
    """The metrics that every table has: the headline of each task among the rows, and the loss of the test."""
    names = [task.headline for task in TASKS.values() if any(f"val/{task.headline}" in row.values for row in found)]
    headlines = names or [SINGLE_LABEL.headline]
    return [f"{split}/{name}" for name in headlines for split in ("val", "test")] + ["test/loss"]


def _most_epochs(row: Row) -> int | None:
    return max((run.epochs for run in row.finished), default=None)


def _validated_on(row: Row) -> str:
    if row.validates_on_test:
        return "the test images"
    return "–" if all(run.validates_on_test is None for run in row.members) else "other images"


def _checkpoint(row: Row, root: str) -> str:
    return os.path.relpath(row.checkpoint, root) if row.checkpoint else "–"


def _choice(key: str, *, minor: bool = False) -> Column:
    return Column(
        key, lambda row: short(row.choices.get(key)), lambda row: row.choices.get(key), choice=True, minor=minor
    )


def _metric(name: str) -> Column:
    return Column(name, lambda row: row.text(name), lambda row: row.mean(name), numeric=True)


def short(value: Json) -> str:
    """A value of the configuration as the text of a cell: on one line, shortened if it is long."""
    text = "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def _with_checkpoint(found: Sequence[Row]) -> list[Column]:
    """The columns, with the best checkpoint after the metrics."""
    root = os.path.commonpath([row.folder for row in found]) if len(found) > 1 else os.path.dirname(found[0].folder)
    path = partial(_checkpoint, root=root)
    shown = columns(found)
    major = [column for column in shown if not column.minor]
    return [*major, Column("best checkpoint", path, path), *shown[len(major) :]]


def fitting(found: Sequence[Row], width: int) -> tuple[list[Column], list[str]]:
    """The columns for a console, and the names of those omitted because it has only `width` characters.

    Choices are omitted from the least important on; the first of them, the metrics and the checkpoint stay.
    """
    chosen = _with_checkpoint(found)
    need = {column.name: _width(column, found) for column in chosen}
    omitted: list[str] = []
    for column in reversed([column for column in chosen if column.choice][1:]):
        if sum(need[each.name] for each in chosen) <= width:
            break
        chosen.remove(column)
        omitted.insert(0, column.name)
    return chosen, omitted


def _width(column: Column, found: Sequence[Row]) -> int:
    """Characters of a column with its frame; a choice may be wrapped at WRAPPED."""
    widest = max(cell_len(printable(text)) for text in (column.name, *(column.text(row) for row in found)))
    return FRAME + (min(widest, WRAPPED) if column.choice else widest)


def as_terminal(chosen: Sequence[Column], found: Sequence[Row], title: str) -> Table:
    """A table for a console."""
    table = Table(title=Text(printable(title)), title_justify="left")
    for column in chosen:
        table.add_column(
            Text(printable(column.name)), justify="right" if column.numeric else "left", no_wrap="/" in column.name
        )
    for row in found:
        table.add_row(*(Text(printable(column.text(row))) for column in chosen))
    return table


def as_markdown(found: Sequence[Row]) -> str:
    """A Markdown table."""
    chosen = _with_checkpoint(found)
    lines = [[markdown(column.name) for column in chosen], ["---"] * len(chosen)]
    lines += [[markdown(column.text(row)) for column in chosen] for row in found]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def as_csv(found: Sequence[Row]) -> str:
    """One line per experiment: every choice, then mean, standard deviation and count of every metric.

    No spreadsheet evaluates a text of it; `escaping.from_csv_cell` gives it back.
    """
    keys = _keys(found)
    metrics = list(dict.fromkeys(name for row in found for name in row.values))
    figures = [f"{name} {what}" for name in metrics for what in ("mean", "sd")]
    lines: list[list[Json]] = [
        [*keys, "seeds", "seconds", "epochs", "validated on", *UNFINISHED, "folder", "checkpoint", *figures]
    ]
    for row in found:
        line: list[Json] = [row.choices.get(key) for key in keys]
        line += [" ".join(map(str, row.seeds)), row.seconds, row.epochs, _validated_on(row)]
        line += [row.statuses.count(status) for status in UNFINISHED]
        line += [row.folder, row.checkpoint]
        for name in metrics:
            values = row.values.get(name, [])
            line += [mean(values) if values else None, deviation(values) if len(values) > 1 else None]
        lines.append(line)
    text = io.StringIO()
    writer = CsvWriter(text)
    for line in lines:
        writer.writerow(line)
    return text.getvalue()
