"""The page on which a person decides about proposals: one offline HTML file that saves corrections.csv."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.corrections import Corrections
from graft.data.display import as_picture
from graft.data.images import ImageSet
from graft.data.reading import opened, to_rgb
from graft.data.stored import ImageFile
from graft.errors import UnreadableImage
from graft.improvement.learning_curve import LEVEL, LearningCurve
from graft.improvement.neighbours import SIDE, Matrix, Neighbours, nearest_of_class
from graft.improvement.overlaps import Overlap
from graft.improvement.proposals import KINDS, Proposal
from graft.improvement.selection import Choice
from graft.report.page import script_data, script_hash, template_of

TEMPLATE = Path(__file__).with_name("page.html.jinja")

LARGE, SMALL = 288, 112
"""Longest side of the picture of a proposal and of its neighbours, in pixels."""

QUALITY = 72
"""JPEG quality of the pictures: about 10 kB of a large one, 3 kB of a small one."""

NEXT = 60
"""Largest number of images to label next that are shown."""

CURVES = 12
"""Largest number of classes whose learning curve is shown: those with the lowest accuracy."""

TITLES: Mapping[str, str] = {
    "label": "label looks wrong",
    "duplicate": "copy with another label",
    "outlier": "unlike all others",
    "dark": "dark",
    "overexposed": "over-exposed",
    "low_contrast": "low contrast",
    "blurred": "blurred",
    "grey": "grey among colour",
    "tiny": "much smaller than others",
    "odd_shape": "unusual shape",
}
"""Kind of proposal -> what the page calls it."""


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Attributes:
        title: plain text.
        proposals: on the page, the best first.
        total: number of all proposals.
        images: all examined images; `Proposal.index` is an index into them.
        labels: class index of each, [N].
        classes: names.
        unit: features of length 1, [N, D].
        neighbours: of each image.
        curves, overlaps, choices: of the other sections.
        original: name of a relabelled image -> its class in the data set.
        earlier: the corrections that are applied already, which the saved file repeats.
        wrong_labels: estimated number of wrong labels.
        fingerprint: of the data set; decisions of another one are not loaded.
    """

    title: str
    proposals: Sequence[Proposal]
    total: int
    images: ImageSet
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    unit: Matrix
    neighbours: Neighbours
    curves: Sequence[LearningCurve]
    overlaps: Sequence[Overlap]
    choices: Sequence[Choice]
    original: Mapping[str, str]
    earlier: Corrections | None
    wrong_labels: float
    fingerprint: str


def as_page(report: Report, done: Callable[[], object] = lambda: None) -> str:
    """The page; no name in it can become HTML, and it loads nothing.

    Args:
        report: what to show.
        done: called after each proposal.
    """
    pictures: dict[str, dict[str, str]] = {}

    def picture(index: int, side: int) -> str:
        key = f"{index}-{side}"
        if key not in pictures:
            image, label = report.images.names[index], report.classes[report.labels[index]]
            pictures[key] = {"name": image, "class": label, "src": thumbnail(report.images, index, side)}
        return key

    shown = []
    for each in report.proposals:
        sides = [
            {"title": title, "pictures": [picture(index, SMALL) for index in found]}
            for title, found in _sides(report, each)
            if found
        ]
        shown.append(
            {
                "path": each.path, "kind": each.kind, "given": each.given, "proposed": each.proposed,
                "score": round(each.score, 3), "split": each.split, "picture": picture(each.index, LARGE),
                "original": report.original.get(each.path, each.given), "sides": sides,
            }
        )  # fmt: skip
        done()
    shown.sort(key=lambda each: KINDS.index(str(each["kind"])))  # stable: within a kind the best first
    kinds = [kind for kind in KINDS if any(each.kind == kind for each in report.proposals)]
    content = {
        "id": hashlib.sha256(json.dumps([report.fingerprint, [*report.classes]]).encode()).hexdigest()[:16],
        "classes": list(report.classes),
        "kinds": {kind: TITLES[kind] for kind in kinds},
        "proposals": shown,
        "pictures": pictures,
        "earlier": [_row(report, row) for row in report.earlier.rows] if report.earlier else [],
        "curves": [curve.plain() for curve in _curves(report.curves)],
        "next": [
            {
                "path": each.path,
                "predicted": each.predicted,
                "probability": round(each.probability, 2),
                "src": _jpeg(each),
            }
            for each in report.choices[:NEXT]
        ],
    }
    return template_of(TEMPLATE).render(
        title=f"improve {report.title}",
        summary=_summary(report),
        overlaps=report.overlaps[:20],
        choices=len(report.choices),
        shown_next=min(NEXT, len(report.choices)),
        level=f"{LEVEL:.0%}",
        data=script_data(content),
        script_hash=script_hash(TEMPLATE),
    )


def _summary(report: Report) -> str:
    more = f", {len(report.proposals):,} of them on this page" if report.total > len(report.proposals) else ""
    return (
        f"{len(report.images):,} images of {len(report.classes):,} classes · about {report.wrong_labels:.0f} wrong "
        f"labels · {report.total:,} proposals{more}"
    )


def _row(report: Report, row: Any) -> dict[str, str]:
    given = row.given or report.original.get(row.path, "")
    return {"path": row.path, "given": given, "action": row.action, "label": row.label, "kind": row.kind}


def _sides(report: Report, proposal: Proposal) -> list[tuple[str, list[int]]]:
    """(title, indices) of the images next to a proposal: the nearest ones of both classes, the copies, or any."""
    index = proposal.index
    if proposal.like:
        return [("its copies", list(proposal.like[: 2 * SIDE]))]
    if proposal.proposed is None:
        return [("the nearest images", report.neighbours.indices[index][: 2 * SIDE].tolist())]
    return [
        (f"{what} class: {name}", nearest_of_class(report.unit, report.labels, index, report.classes.index(name)))
        for what, name in (("given", proposal.given), ("proposed", proposal.proposed))
    ]


def _curves(curves: Sequence[LearningCurve]) -> list[LearningCurve]:
    """That of all images, and those of the classes with the lowest accuracy."""
    return [*curves[:1], *sorted(curves[1:], key=lambda curve: curve.accuracy[-1])[:CURVES]]


def thumbnail(images: ImageSet, index: int, side: int) -> str:
    """An image of at most `side` pixels as the address of its data (JPEG); empty if it cannot be read."""
    try:
        if images.paths is None or not images.image_format.is_rgb:
            return _encoded(as_picture(images.load(index)), side)
        return _from_file(images.paths[index], side)
    except UnreadableImage:
        return ""


def _jpeg(choice: Choice) -> str:
    try:
        return _from_file(Path(choice.file), SMALL)
    except UnreadableImage:
        return ""


def _from_file(path: ImageFile, side: int) -> str:
    with opened(path, side) as image:
        return _encoded(to_rgb(image), side)


def _encoded(image: Image.Image, side: int) -> str:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    content = io.BytesIO()
    image.resize(size, kind).save(content, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
