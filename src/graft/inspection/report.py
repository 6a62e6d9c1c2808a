"""The report of `graft inspect`: tables for the terminal, plain values for a JSON file."""

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
"""Most classes in the table; the JSON file has all."""

MOST_OF_A_GROUP = 6
"""Most names shown of a group of images."""

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def tables(inspection: Inspection, found: Sequence[Finding], title: str, rows: int) -> RenderableType:
    """The report for the terminal.

    Args:
        inspection: the inspection.
        found: its findings.
        title: of the report.
        rows: most names listed for each finding.
    """
    parts: list[RenderableType] = [Text(printable(title), style="bold"), class_table(inspection)]
    parts += [Text(f"note  {printable(note)}") for note in inspection.collection.notes]
    if inspection.readable:
        parts += [size_table(inspection), *(Text(line) for line in resize_lines(inspection))]
    return Group(*parts, finding_table(found, rows), Text(verdict(found), style="bold"))


def class_table(inspection: Inspection) -> Table:
    """Table of the numbers of images per class and split, and of unreadable images."""
    table = Table()
    table.add_column("class")
    for name in (*inspection.collection.parts, *(["unreadable"] if inspection.unreadable else [])):
        table.add_column(name, justify="right")
    unreadable = (inspection.counts - inspection.readable_counts).sum(axis=1, keepdims=True)
    counts = np.hstack([inspection.counts, unreadable]) if inspection.unreadable else inspection.counts
    for name, row in list(zip(inspection.collection.classes, counts.tolist(), strict=True))[:MOST_CLASSES]:
        table.add_row(Text(printable(name)), *(f"{count:,}" for count in row))
    hidden = len(counts) - MOST_CLASSES
    if hidden > 0:
        table.add_row(f"… and {hidden:,} more", *(f"{count:,}" for count in counts[MOST_CLASSES:].sum(axis=0).tolist()))
    table.add_section()
    table.add_row("all", *(f"{count:,}" for count in counts.sum(axis=0).tolist()))
    return table


def size_table(inspection: Inspection) -> Table:
    """Table of the widths, heights and aspect ratios of the readable images."""
    table = Table()
    for name in ("", "least", "median", "most"):
        table.add_column(name, justify="right" if name else "left")
    for name, values, digits in (
        ("width", inspection.sizes[:, 0], 0),
        ("height", inspection.sizes[:, 1], 0),
        ("width / height", inspection.aspect, 2),
    ):
        table.add_row(name, *(f"{value:.{digits}f}" for value in spread(values).values()))
    return table


def resize_lines(inspection: Inspection) -> Iterator[str]:
    """Lines about the effects of resizing and the formats of the images."""
    own, scale = inspection.preprocessing, inspection.scale
    names = [inspection.name(index) for index in inspection.readable]
    kept = " x ".join(map(str, own.size[::-1]))
    if own.fit != "crop":
        yield f"squashed to {kept} pixels, nothing is cut off"
    else:
        box = " x ".join(map(str, own.box[::-1]))
        square = isinstance(own.input_size, int)
        resized = f"short side to {own.resize_size} pixels" if square else f"resized to cover {box} pixels"
        what = f"{resized}, of which {kept} in the middle are kept"
        worst = printable(names[int(inspection.cropped_share.argmax())])
        yield f"{what}: {np.median(inspection.cropped_share):.0%} of the area of the median image are cut off" + (
            f", {inspection.cropped_share.max():.0%} of {worst}"
            if inspection.cropped_share.max() > np.median(inspection.cropped_share)
            else ""
        )
    enlarged = int((scale > 1).sum())
    yield f"enlarged: {enlarged:,} of {len(names):,}" + (
        f", the smallest {scale.max():.1f} times ({printable(names[int(scale.argmax())])})" if enlarged else ""
    )
    kinds = Counter(f"{facts.format} {facts.mode}".strip() for facts in inspection.readable.values())
    yield "stored as " + ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())


def finding_table(found: Sequence[Finding], rows: int) -> RenderableType:
    """Table of the findings, the most severe first, with some names of each."""
    if not found:
        return Text("no problems found")
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
        across = len({part for _, part in group}) > 1
        names = [printable(name) + (f" ({part})" if across else "") for name, part in group[:MOST_OF_A_GROUP]]
        more = len(group) - len(names)
        yield sign.join(names) + (f" and {more:,} more" if more else "")


def verdict(found: Sequence[Finding]) -> str:
    """ "1 error, 2 warnings, 0 notes"."""
    counts = Counter(finding.severity for finding in found)
    return ", ".join(f"{counts[name]} {name}{'s' if counts[name] != 1 else ''}" for name in SEVERITIES)


def spread(values: Floats) -> dict[str, float]:
    """Minimum, median and maximum of at least one value."""
    return {"min": float(values.min()), "median": float(np.median(values)), "max": float(values.max())}


def plain(inspection: Inspection, found: Sequence[Finding], sheets: Mapping[str, Path]) -> dict[str, Any]:
    """The report as plain values; images that are both validation and test images are counted in "val" and "test"."""
    own = inspection.preprocessing
    names = [inspection.name(index) for index in inspection.readable]
    return {
        "ok": all(finding.severity != "error" for finding in found),
        "root": None if inspection.collection.root is None else str(inspection.collection.root),
        "classes": list(inspection.collection.classes),
        "notes": list(inspection.collection.notes),
        "counts": _per_split(inspection, inspection.counts),
        "readable": _per_split(inspection, inspection.readable_counts),
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
            "width": spread(inspection.sizes[:, 0]),
            "height": spread(inspection.sizes[:, 1]),
            "aspect": spread(inspection.aspect),
        }
        if names
        else {},
        "resize": {
            "preprocessing": own.to_dict(),
            "enlarged": int((inspection.scale > 1).sum()),
            "cropped": spread(inspection.cropped_share) | {"worst": names[int(inspection.cropped_share.argmax())]},
        }
        if names
        else {},
        "formats": dict(Counter(facts.format for facts in inspection.readable.values() if facts.format).most_common()),
        "modes": dict(Counter(facts.mode for facts in inspection.readable.values()).most_common()),
        "sheets": {name: str(path) for name, path in sheets.items()},
    }


def _per_split(inspection: Inspection, counts: Any) -> dict[str, dict[str, int]]:
    return {
        split: dict(zip(inspection.collection.classes, counts[:, number].tolist(), strict=True))
        for number, part in enumerate(inspection.collection.parts)
        for split in part.split(" and ")
    }
