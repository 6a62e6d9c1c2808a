"""Proposals to change a data set, and their file, proposals.csv."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graft.improvement.pictures import CHECKS
from graft.system.escaping import CsvWriter

LABEL, DUPLICATE, OUTLIER = "label", "duplicate", "outlier"

KINDS = (LABEL, DUPLICATE, OUTLIER, *CHECKS)
"""Kinds of proposals, the most useful first."""

COLUMNS = ("path", "kind", "given", "proposed", "score", "split")


@dataclass(frozen=True)
class Proposal:
    """A proposal about one image.

    Attributes:
        index: of the image, in the order of the report.
        path: its name.
        kind: one of `KINDS`.
        given: its class in the data set.
        proposed: another class; None: to look at it, and perhaps to exclude it.
        score: how sure the proposal is, in [0, 1].
        split: "train", "val" or "test"; "val and test" where both are the same images.
        like: indices of other images that the proposal is about, e.g. a duplicate.
    """

    index: int
    path: str
    kind: str
    given: str
    proposed: str | None
    score: float
    split: str
    like: tuple[int, ...] = ()


def ranked(proposals: Iterable[Proposal]) -> list[Proposal]:
    """The best first; of equal scores in the order of `KINDS`, then by path."""
    return sorted(proposals, key=lambda each: (-each.score, KINDS.index(each.kind), each.path))


def as_csv(proposals: Sequence[Proposal]) -> str:
    """The content of proposals.csv; no spreadsheet evaluates a text of it."""
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.writerow(COLUMNS)
    for each in proposals:
        writer.writerow([each.path, each.kind, each.given, each.proposed, f"{each.score:.4f}", each.split])
    return text.getvalue()
