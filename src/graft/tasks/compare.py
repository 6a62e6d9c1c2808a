"""`graft compare`: all finished runs below a folder, side by side."""

from pathlib import Path
from typing import Any

from rich.console import Console

from graft.errors import DataError
from graft.files import require_writable, write_atomically
from graft.review.comparison import as_csv, as_markdown, as_terminal, read_summaries, rows, significance
from graft.review.page import as_page

WIDE = 240


def main(config: Any) -> None:
    """Print the table of the runs below `config.runs`; write compare.md, compare.csv and compare.html."""
    show(Path(config.runs), sort=config.sort, output=config.output and Path(config.output))


def show(folder: Path, *, sort: str, output: Path | None = None) -> None:
    """The table, on the terminal and as files in `output` (default: `folder`).

    Raises:
        DataError: no run below `folder`.
    """
    require_writable(output or folder, "output")
    found = rows(read_summaries(folder), sort)
    if not found:
        raise DataError(f"runs={folder}: no finished run (no summary.json) below this folder.")
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # in a file or a pipe nothing need be cut
    console.print(as_terminal(found, f"{folder} by {sort}"))
    test = significance(found, sort)
    if test:
        console.print(test, highlight=False)
    output = output or folder
    write_atomically(output / "compare.md", (as_markdown(found) + (f"\n{test}\n" if test else "")).encode())
    write_atomically(output / "compare.csv", as_csv(found).encode())
    write_atomically(output / "compare.html", as_page(found, f"Runs below {folder}").encode())
    console.print(f"page  {output / 'compare.html'}", highlight=False, markup=False, soft_wrap=True)
