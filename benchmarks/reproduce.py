"""docs/results.md from real runs: every preset, the published figure and ours.

    python -m benchmarks.reproduce run [ROW ...]     train what is not trained yet (ROW: part of a row's name)
    python -m benchmarks.reproduce table             docs/results.json and docs/results.md from the runs
    python -m benchmarks.reproduce list              the rows and how far each is

Runs lie below `--runs` (outputs/reproduce), a folder a row and seed; a finished one is not run again. `--data` and
`--weights` say where data sets and weight files lie; without `--weights` torchvision's are downloaded. `table` adds
what it finds to docs/results.json, so that figures of several machines come together, and no figure is typed by hand.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import ROWS, Row
from graft.system.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

INTRODUCTION = """# Results

What each preset is said to give, and what it gave here. Made by `python -m benchmarks.reproduce table` from the runs'
`summary.json`; no figure is typed by hand. "ours" is the accuracy on the test images (for ants and bees and for masks
these are the validation images, as in the originals), mean ± standard deviation over the seeds; "best validation" is
the best of all epochs where checkpoints were chosen by it. Seconds are wall clock; the
machine may have had other work. Runs from before December 2026 had other random draws of augmentation, so that the
same seed now gives other figures.
Seconds and accuracies on a GPU are in [performance.md](performance.md#on-a-gpu).
"""


def command(row: Row, seed: int, data: Path, weights: Path | None) -> list[str]:
    """The words that train `row` with `seed`."""
    words = ["graft", "train", f"experiment={row.preset}", *row.overrides]
    if row.weights is not None and weights is not None:
        words.append(f"model.weights={weights / row.weights}")
    return [*words, f"paths.data={data}", f"seed={seed}"]


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished run, or None."""
    try:
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("status") == "finished" else None


def run(rows: Iterable[Row], arguments: argparse.Namespace) -> int:
    """Train every seed of `rows` that is not finished; returns how many failed."""
    failed = 0
    for row in rows:
        for seed in row.seeds:
            folder = arguments.runs / row.folder / str(seed)
            if row.unmeasured or summary_of(folder):
                continue
            words = command(row, seed, arguments.data, arguments.weights)
            print("\n$", *words, flush=True)
            words = [sys.executable, "-m", "graft.cli", *words[1:]]
            done = subprocess.run([*words, f"hydra.run.dir={folder}", "resume=auto"], check=False)
            failed += done.returncode != 0
    return failed


def record(row: Row, seed: int, folder: Path) -> dict[str, Any] | None:
    """What docs/results.json keeps of a run."""
    summary = summary_of(folder)
    if summary is None:
        return None
    return {
        "row": row.name,
        "seed": seed,
        "machine": machine_of(summary),
        "precision": summary["device"]["precision"],
        "metrics": {name: round(value, 4) for name, value in summary["metrics"].items()},
        "val/acc": accuracy_by_epoch(folder / "metrics.csv"),
        "epochs": summary["epochs"],
        "seconds": summary["seconds"],
        "date": summary["started"],
        "versions": {name: summary["versions"][name] for name in ("graft", "torch", "torchvision", "lightning")},
        "commit": (summary["git"] or {}).get("commit"),
    }


def machine_of(summary: dict[str, Any]) -> str:
    """The GPUs where there were any, else the processor."""
    device = summary["device"]
    if device["accelerator"] != "cpu":
        return f"{device['devices']} × {device['name']}"
    return f"{summary['machine']}, {device['threads']} thread{'s' if device['threads'] > 1 else ''}"


def accuracy_by_epoch(table: Path) -> list[float]:
    """Validation accuracy at the end of each epoch."""
    last: dict[int, float] = {}
    with table.open(newline="") as file:
        for line in csv.DictReader(file):
            if line.get("val/acc") and line.get("train/loss"):
                last[int(line["epoch"])] = round(float(line["val/acc"]), 4)
    return [last[epoch] for epoch in sorted(last)]


def merged(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both, a new run in place of the old one of the same row, seed and machine; rows that are no more are left out."""
    order = {row.name: place for place, row in enumerate(ROWS)}
    by_key = {(entry["row"], entry["machine"], entry["seed"]): entry for entry in (*old, *new)}
    return sorted(
        (entry for entry in by_key.values() if entry["row"] in order),
        key=lambda entry: (order[entry["row"]], entry["machine"], entry["seed"]),
    )


def page(records: Sequence[dict[str, Any]]) -> str:
    """docs/results.md."""
    by_row: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in records:
        by_row[entry["row"]][f"{entry['machine']}, {entry['precision']}"].append(entry)
    text = [INTRODUCTION]
    for chapter in dict.fromkeys(row.chapter for row in ROWS):
        text.append(f"\n## {chapter}\n")
        text.append("| run | published | ours | best validation | seeds | seconds a run | machine |")
        text.append("|---|---|---|---|---|---|---|")
        rows = [row for row in ROWS if row.chapter == chapter]
        for row in rows:
            for machine, entries in by_row[row.name].items():
                text.append(_line(row, entries, machine))
            if not by_row[row.name]:
                text.append(f"| {_title(row)} | {row.published} | not measured: {row.reason()} | | | | |")
        text += ["", *_remarks(rows, by_row)]
    return "\n".join(text).rstrip() + "\n"


def _line(row: Row, entries: Sequence[dict[str, Any]], machine: str) -> str:
    seeds = " ".join(str(entry["seed"]) for entry in entries)
    seconds = statistics.fmean(entry["seconds"] for entry in entries)
    validated = [max(entry["val/acc"]) for entry in entries if entry["val/acc"]]
    best = _spread(validated) if validated else "–"
    ours = _spread([entry["metrics"]["test/acc"] for entry in entries])
    return f"| {_title(row)} | {row.published} | {ours} | {best} | {seeds} | {seconds:.0f} | {machine} |"


def _spread(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


def _title(row: Row) -> str:
    return f"`{row.name}`" if row.name == row.preset else row.name


def _remarks(rows: Sequence[Row], by_row: dict[str, dict[str, list[dict[str, Any]]]]) -> list[str]:
    """Under a chapter's table: what departs, the accuracy of each epoch, and the exact commands."""
    lines = []
    for row in rows:
        said = [row.departs] if row.departs else []
        for entries in by_row[row.name].values():
            first = entries[0]
            if curve := " ".join(f"{value:.3f}" for value in first["val/acc"]):
                said.append(f"Validation accuracy by epoch, seed {first['seed']}: {curve}.")
            each = {name: value for name, value in first["metrics"].items() if name.startswith("test/acc/")}
            if len(each) > 2:
                shown = ", ".join(f"{name.removeprefix('test/acc/')} {value:.2f}" for name, value in each.items())
                said.append(f"By class, seed {first['seed']}: {shown}.")
        losses = [f"{entries[0]['metrics']['train/loss']:.3f}" for entries in by_row[row.name].values()]
        said += [f"Training loss of the last epoch: {', '.join(losses)}."] if losses else []
        words = f"`{' '.join(command(row, row.seeds[0], Path('DATA'), Path('WEIGHTS')))}`"
        lines.append(f"- {_title(row)}: {' '.join([*said, words])}")
    return lines


def table(arguments: argparse.Namespace) -> None:
    """Write docs/results.json and docs/results.md."""
    stored = DOCS / "results.json"
    old = json.loads(stored.read_text()) if stored.is_file() else []
    found = [record(row, seed, arguments.runs / row.folder / str(seed)) for row in ROWS for seed in row.seeds]
    records = merged(old, [entry for entry in found if entry is not None])
    write_atomically(stored, (json.dumps(records, indent=1) + "\n").encode())
    write_atomically(DOCS / "results.md", page(records).encode())
    print(f"{len(records)} runs in docs/results.json, docs/results.md written")


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table", "list"))
    parser.add_argument("rows", nargs="*", metavar="ROW", help="only rows whose name contains one of these")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs" / "reproduce")
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--weights", type=Path, help="folder of weight files; without it they are downloaded")
    arguments = parser.parse_intermixed_args(words)  # options between WHAT and ROW too
    chosen = [row for row in ROWS if not arguments.rows or any(part in row.name for part in arguments.rows)]
    if arguments.what == "run":
        sys.exit(1 if run(chosen, arguments) else 0)
    if arguments.what == "table":
        table(arguments)
    else:
        for row in chosen:
            done = sum(summary_of(arguments.runs / row.folder / str(seed)) is not None for seed in row.seeds)
            print(f"{row.name:<55} {row.reason() if row.unmeasured else f'{done} of {len(row.seeds)}'}")


if __name__ == "__main__":
    main()
