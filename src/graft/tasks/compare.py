"""`graft compare`: a table and a page of all finished runs in a folder."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from graft.config.commands import CompareConfig
from graft.config.fields import one_of
from graft.config.registration import typed
from graft.errors import DataError
from graft.report.comparison import (
    Row,
    as_csv,
    as_markdown,
    as_terminal,
    fitting,
    ordering,
    rows,
    significance,
)
from graft.report.page import as_page
from graft.report.summary import Unreadable, find_summaries
from graft.system.escaping import markdown
from graft.system.files import require_writable, write_atomically
from graft.system.terminal import PlainConsole

LISTED = 10
"""Largest number of files that are listed."""


def main(config: DictConfig) -> None:
    """Run `graft compare`: print the table of the runs in `runs`, and write compare.md, compare.csv and compare.html.

    Args:
        config: a CompareConfig, composed by Hydra.
    """
    cfg = typed(config, CompareConfig)
    show(Path(cfg.runs), sort=cfg.sort, output=None if cfg.output is None else Path(cfg.output))


def show(folder: Path, *, sort: str | None = None, output: Path | None = None) -> None:
    """Print the table and write it to `output` (default: `folder`).

    Args:
        folder: with the runs, at any depth.
        sort: the metric that orders the rows; None: what the runs optimize.
        output: folder of the files.

    Raises:
        DataError: no run in `folder`.
        ConfigError: no run has a metric `sort`; names the nearest.
    """
    require_writable(output or folder, "output")
    console = PlainConsole()
    summaries, unreadable = find_summaries(folder)
    found = rows(summaries, sort)
    if not found:
        reasons = "".join(f"\n  {each}" for each in unreadable[:LISTED])
        raise DataError(f"runs={folder}: no finished run (no summary.json that can be read) in this folder.{reasons}")
    if sort is not None:
        one_of("sort", sort, sorted({name for row in found for name in row.values}))
    metric = sort or ordering(found)
    show_table(console, found, f"{folder} by {metric}")
    notes = notes_on(found, metric)
    for note in notes:
        console.print(note, soft_wrap=True)
    output = output or folder
    page = as_page(found, f"Runs in {folder}", unreadable)
    text = as_markdown(found) + "".join(f"\n{markdown(note)}\n" for note in notes)
    write_atomically(output / "compare.md", text.encode("utf-8", "backslashreplace"))
    write_atomically(output / "compare.csv", as_csv(found).encode("utf-8", "backslashreplace"))
    write_atomically(output / "compare.html", page.encode())
    console.print(f"page  {output / 'compare.html'}", soft_wrap=True)
    name_unreadable(console, [*unreadable, *page.unreadable])


def show_table(console: PlainConsole, found: Sequence[Row], title: str) -> None:
    """Print the table, and the names of the columns that the console is too narrow for."""
    chosen, omitted = fitting(found, console.width)
    console.print(as_terminal(chosen, found, title))
    if omitted:
        console.print(f"different too (see compare.md): {', '.join(omitted)}", soft_wrap=True)


def notes_on(found: Sequence[Row], metric: str) -> list[str]:
    """Notes for the reader of the table."""
    notes = [test] if (test := significance(found, metric)) else []
    if metric.startswith("test/"):
        notes.append(f"Ordered by {metric} (sort): a metric to report, not to choose a run by.")
    others = {row.metric for row in found} - {metric}
    if others:
        notes.append(f"Some runs optimize {', '.join(sorted(others))}; the best checkpoint of a row is chosen by that.")
    if any(row.validates_on_test for row in found):
        notes.append("Rows validated on the test images were chosen by them: their test metrics are too optimistic.")
    return notes


def name_unreadable(console: PlainConsole, unreadable: Sequence[Unreadable]) -> None:
    """Print the files that could not be read."""
    if unreadable:
        console.print(f"{len(unreadable):,} files could not be read and are not in the table or page:", soft_wrap=True)
        for each in unreadable[:LISTED]:
            console.print(f"  {each}", soft_wrap=True)
        if len(unreadable) > LISTED:
            console.print(f"  and {len(unreadable) - LISTED:,} more", soft_wrap=True)
