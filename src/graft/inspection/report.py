"""What `graft inspect` shows: tables for the terminal, plain values for a JSON file."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from graft.inspection.dataset import Floats, Inspection
from graft.inspection.findings import SEVERITIES, Finding
from graft.system.escaping import printable

MOST_CLASSES = 50
"""The table shows no more classes; the JSON file has all."""

MOST_OF_A_GROUP = 6
"""So many names are shown of pictures that belong together."""

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def tables(seen: Inspection, found: Sequence[Finding], title: str, rows: int) -> RenderableType:
    """The whole report.

    Args:
        seen: what was seen.
        found: what there is to tell of it.
        title: the data set.
        rows: so many names at most are listed of each finding.
    """
    parts: list[RenderableType] = [Text(printable(title), style="bold"), class_table(seen)]
    parts += [Text(f"note  {printable(note)}") for note in seen.collection.notes]
    if seen.looks:
        parts += [size_table(seen), *(Text(line) for line in resize_lines(seen))]
    return Group(*parts, finding_table(found, rows), Text(verdict(found), style="bold"))


def class_table(seen: Inspection) -> Table:
    """Images per class and part, and how many of them cannot be read."""
    table = Table()
    table.add_column("class")
    for name in (*seen.collection.parts, *(["unreadable"] if seen.faults else [])):
        table.add_column(name, justify="right")
    unreadable = (seen.counts - seen.readable_counts).sum(axis=1, keepdims=True)
    counts = np.hstack([seen.counts, unreadable]) if seen.faults else seen.counts
    for name, row in list(zip(seen.collection.classes, counts.tolist(), strict=True))[:MOST_CLASSES]:
        table.add_row(Text(printable(name)), *(f"{count:,}" for count in row))
    hidden = len(counts) - MOST_CLASSES
    if hidden > 0:
        table.add_row(f"… and {hidden:,} more", *(f"{count:,}" for count in counts[MOST_CLASSES:].sum(axis=0).tolist()))
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in counts.sum(axis=0).tolist()))
    return table


def size_table(seen: Inspection) -> Table:
    """Widths, heights and aspect ratios of the readable pictures."""
    table = Table()
    for name in ("", "least", "median", "most"):
        table.add_column(name, justify="right" if name else "left")
    for name, values, digits in (
        ("width", seen.sizes[:, 0], 0),
        ("height", seen.sizes[:, 1], 0),
        ("width / height", seen.aspect, 2),
    ):
        table.add_row(name, *(f"{value:.{digits}f}" for value in spread(values).values()))
    return table


def resize_lines(seen: Inspection) -> Iterator[str]:
    """What the chosen resize does to them, and what they are stored as."""
    own, scale = seen.preprocessing, seen.scale
    names = [seen.name(index) for index in seen.looks]
    if own.fit != "crop":
        yield f"squashed to {own.input_size} x {own.input_size} pixels, nothing is cut off"
    else:
        middle = f"{own.input_size} x {own.input_size} in the middle"
        what = f"short side to {own.resize_size} pixels, of which {middle} are seen"
        worst = printable(names[int(seen.cropped_share.argmax())])
        yield f"{what}: {np.median(seen.cropped_share):.0%} of the area of the median picture are cut off" + (
            f", {seen.cropped_share.max():.0%} of {worst}"
            if seen.cropped_share.max() > np.median(seen.cropped_share)
            else ""
        )
    enlarged = int((scale > 1).sum())
    yield f"enlarged: {enlarged:,} of {len(names):,}" + (
        f", the smallest {scale.max():.1f} times ({printable(names[int(scale.argmax())])})" if enlarged else ""
    )
    kinds = Counter(f"{look.format} {look.mode}".strip() for look in seen.looks.values())
    yield "stored as " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())


def finding_table(found: Sequence[Finding], rows: int) -> RenderableType:
    """The findings, the worst first, with some of the names of each."""
    if not found:
        return Text("nothing found that stands in the way")
    table = Table(show_lines=True)
    table.add_column("")
    table.add_column("finding", ratio=2)
    table.add_column("where", ratio=3, overflow="fold")
    for finding in found:
        lines = list(_lines(finding))
        more = len(lines) - rows
        shown = lines[:rows] + ([f"… and {more:,} more (output=FILE.json lists all)"] if more > 0 else [])
        what = Text(f"{finding.kind}\n", style="bold").append(printable(finding.message, lines=True), style="not bold")
        table.add_row(Text(finding.severity, style=STYLES[finding.severity]), what, Text("\n".join(shown)))
    return table


def _lines(finding: Finding) -> Iterator[str]:
    sign = " = " if finding.kind.startswith("same") else " ~ "
    for name, reason in finding.files:
        yield printable(name) + (f"  ({printable(reason)})" if reason else "")
    for group in finding.groups:
        apart = len({part for _, part in group}) > 1
        names = [printable(name) + (f" ({part})" if apart else "") for name, part in group[:MOST_OF_A_GROUP]]
        more = len(group) - len(names)
        yield sign.join(names) + (f" and {more:,} more" if more else "")


def verdict(found: Sequence[Finding]) -> str:
    """ "1 error, 2 warnings, 0 notes"."""
    counts = Counter(finding.severity for finding in found)
    return ", ".join(f"{counts[name]} {name}{'s' if counts[name] != 1 else ''}" for name in SEVERITIES)


def spread(values: Floats) -> dict[str, float]:
    """Least, median and most of at least one value."""
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}


def plain(seen: Inspection, found: Sequence[Finding], sheets: Mapping[str, Path]) -> dict[str, Any]:
    """Everything as plain values. Parts are called as splits are: where one serves as both, "val" and "test" agree."""
    own = seen.preprocessing
    names = [seen.name(index) for index in seen.looks]
    return {
        "ok": all(finding.severity != "error" for finding in found),
        "root": None if seen.collection.root is None else str(seen.collection.root),
        "classes": list(seen.collection.classes),
        "notes": list(seen.collection.notes),
        "counts": _per_split(seen, seen.counts),
        "readable": _per_split(seen, seen.readable_counts),
        "findings": [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "message": finding.message,
                "files": [{"name": name, "reason": reason} for name, reason in finding.files],
                "groups": [[{"name": name, "part": part} for name, part in group] for group in finding.groups],
            }
            for finding in found
        ],
        "sizes": {
            "width": spread(seen.sizes[:, 0]),
            "height": spread(seen.sizes[:, 1]),
            "aspect": spread(seen.aspect),
        }
        if names
        else {},
        "resize": {
            "preprocessing": own.to_dict(),
            "enlarged": int((seen.scale > 1).sum()),
            "cropped": spread(seen.cropped_share) | {"worst": names[int(seen.cropped_share.argmax())]},
        }
        if names
        else {},
        "formats": dict(Counter(look.format for look in seen.looks.values() if look.format).most_common()),
        "modes": dict(Counter(look.mode for look in seen.looks.values()).most_common()),
        "sheets": {name: str(path) for name, path in sheets.items()},
    }


def _per_split(seen: Inspection, counts: Any) -> dict[str, dict[str, int]]:
    return {
        split: dict(zip(seen.collection.classes, counts[:, number].tolist(), strict=True))
        for number, part in enumerate(seen.collection.parts)
        for split in part.split(" and ")
    }
