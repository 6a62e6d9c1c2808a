"""Runs side by side: those that differ only in their seed are one row, mean ± standard deviation."""

import csv
import io
import json
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from graft.files import read_regular

METRICS = ("val/acc", "test/acc", "test/loss")
UNFINISHED = ("failed", "pruned", "interrupted")


@dataclass(frozen=True)
class Row:
    """Runs of one configuration.

    Attributes:
        choices: what was configured, without the seed.
        values: metric name to the figures of the finished runs, one a seed.
        seeds: of the finished runs.
        seconds: mean duration.
        statuses: of all runs, finished or not.
        folder: of the run with the best sorting metric.
        checkpoint: that run's best checkpoint, None before there is one.
        repeats: seed and fold of each finished run, in the order of `values`.
    """

    choices: dict[str, Any]
    values: dict[str, list[float]]
    seeds: list[int]
    seconds: float
    statuses: list[str]
    folder: str
    checkpoint: str | None = None
    repeats: tuple[tuple[int, int | None], ...] = ()

    def runs(self) -> str:
        """How many finished, and what became of the others: "2 (+1 failed)"."""
        others = Counter(status for status in self.statuses if status != "finished")
        said = ", ".join(f"+{count} {status}" for status, count in sorted(others.items()))
        return f"{len(self.seeds)}" + (f" ({said})" if said else "")

    def text(self, metric: str) -> str:
        """ "0.912 ± 0.013", or the single figure, or "–"."""
        values = self.values.get(metric, [])
        if not values:
            return "–"
        mean = statistics.fmean(values)
        return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"

    def mean(self, metric: str) -> float:
        """Mean of a metric over the seeds; minus infinity where there is none."""
        values = self.values.get(metric, [])
        return statistics.fmean(values) if values else float("-inf")


def read_summaries(folder: Path) -> list[dict[str, Any]]:
    """Every summary.json below `folder`, with its run's folder as "folder"; unreadable ones are left out."""
    summaries = []
    for file in sorted(folder.rglob("summary.json")):
        try:
            summaries.append(json.loads(read_regular(file)) | {"folder": str(file.parent)})
        except (OSError, ValueError):
            continue
    return summaries


def rows(summaries: Iterable[dict[str, Any]], sort: str = "test/acc") -> list[Row]:
    """One row a configuration, the best mean of `sort` first (losses: the least)."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for summary in summaries:
        groups[json.dumps(summary.get("config", {}), sort_keys=True)].append(summary)
    found = [_row(group, sort) for group in groups.values()]
    ascending = sort.endswith("loss")
    return sorted(found, key=lambda row: -row.mean(sort) if not ascending else abs(row.mean(sort)))


def _row(group: Sequence[dict[str, Any]], sort: str) -> Row:
    finished = [summary for summary in group if summary["status"] == "finished"]
    values: dict[str, list[float]] = defaultdict(list)
    for summary in finished:
        for name, value in summary["metrics"].items():
            values[name].append(value)
    sign = -1 if sort.endswith("loss") else 1
    best = max(finished or group, key=lambda summary: sign * summary["metrics"].get(sort, float("-inf") * sign))
    return Row(
        choices=group[0].get("config", {}),
        values=dict(values),
        seeds=[summary["seed"] for summary in finished],
        seconds=statistics.fmean(summary["seconds"] for summary in group),
        statuses=[summary["status"] for summary in group],
        folder=best["folder"],
        checkpoint=str(Path(best["folder"]) / best["checkpoint"]) if best.get("checkpoint") else None,
        repeats=tuple((summary["seed"], summary.get("fold")) for summary in finished),
    )


def significance(found: Sequence[Row], metric: str) -> str | None:
    """How sure it is that the first row is better than the second: one sentence, or None without a second.

    The runs are paired by seed (and fold) and a two-sided paired t-test is made over the pairs' differences. Being
    first is chance too where many rows were tried: the p-value takes no account of that.
    """
    if len(found) < 2:
        return None
    first, second = (dict(zip(row.repeats, row.values.get(metric, []), strict=False)) for row in found[:2])
    if not second:
        return None
    pairs = sorted(first.keys() & second.keys(), key=str)
    what = f"First against second by {metric}"
    if len(pairs) < 2:
        return f"{what}: {len(pairs) or 'no'} seed in common; with more (seed=0,1,2) the difference can be tested."
    differences = [first[pair] - second[pair] for pair in pairs]
    mean, sd = statistics.fmean(differences), statistics.stdev(differences)
    said = f"{what}: {mean:+.4f} ± {sd:.4f}, paired by seed"
    if sd < 1e-12 * max(map(abs, differences), default=0) or not any(differences):
        return f"{said}, n = {len(pairs)}: the same difference for every seed, so there is nothing to test."
    from scipy.stats import ttest_rel

    p = ttest_rel([first[pair] for pair in pairs], [second[pair] for pair in pairs]).pvalue
    return f"{said}: paired t-test, n = {len(pairs)}, p = {p:.2g}."


def differing(found: Sequence[Row]) -> list[str]:
    """The choices in which the rows differ, less those that follow from a difference already shown: what is the
    same everywhere, or wherever the same groups were chosen, needs no column."""
    keys = list(dict.fromkeys(key for row in found for key in row.choices))
    text = {(id(row), key): json.dumps(row.choices.get(key)) for row in found for key in keys}
    shown = [key for key in keys if "." not in key and len({text[id(row), key] for row in found}) > 1]
    kinds = {id(row): tuple(text[id(row), key] for key in shown) for row in found}
    shown += [
        key
        for key in keys
        if "." in key and len({(kinds[id(row)], text[id(row), key]) for row in found}) > len(set(kinds.values()))
    ]
    return shown or [key for key in ("model", "data", "strategy") if key in keys]


def _cells(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    keys = differing(found)
    header = [*keys, "runs", *METRICS, "seconds", "best checkpoint"]
    root = os.path.commonpath([row.folder for row in found]) if len(found) > 1 else os.path.dirname(found[0].folder)
    lines = []
    for row in found:
        shown = [_plain(row.choices.get(key)) for key in keys]
        checkpoint = os.path.relpath(row.checkpoint, root) if row.checkpoint else "–"
        figures = [row.text(metric) for metric in METRICS]
        lines.append([*shown, row.runs(), *figures, f"{row.seconds:.1f}", checkpoint])
    return header, lines


def _plain(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def as_terminal(found: Sequence[Row], title: str) -> Table:
    """A table for rich's console."""
    header, lines = _cells(found)
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(
            name,
            justify="right" if name in (*METRICS, "runs", "seconds") else "left",
            no_wrap=name in METRICS,
        )
    for line in lines:
        table.add_row(*(cell.replace("[", r"\[") for cell in line))
    return table


def as_markdown(found: Sequence[Row]) -> str:
    """A Markdown table."""
    header, lines = _cells(found)
    body = [header, ["---"] * len(header), *lines]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in body)


def as_csv(found: Sequence[Row]) -> str:
    """One line a configuration: every choice, then mean, standard deviation and number of every metric."""
    keys = list(dict.fromkeys(key for row in found for key in row.choices))
    metrics = list(dict.fromkeys(name for row in found for name in row.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *keys,
            "seeds",
            "seconds",
            *(f"{status}" for status in UNFINISHED),
            "folder",
            "checkpoint",
            *(f"{name} {what}" for name in metrics for what in ("mean", "sd")),
        ]
    )
    for row in found:
        figures: list[Any] = []
        for name in metrics:
            values = row.values.get(name, [])
            figures += [
                statistics.fmean(values) if values else "",
                statistics.stdev(values) if len(values) > 1 else "",
            ]
        seeds = " ".join(map(str, row.seeds))
        unfinished = [row.statuses.count(status) for status in UNFINISHED]
        told = [seeds, row.seconds, *unfinished, row.folder, row.checkpoint]
        writer.writerow([*(row.choices.get(key) for key in keys), *told, *figures])
    return text.getvalue()
