"""Images that turn out to be unreadable during training or evaluation, with data.on_error=skip."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.cached_images import CachedImages
from graft.data.images import ImageSet
from graft.data.sampler import PADDING
from graft.data.transforms import Picture
from graft.errors import DataError, UnreadableImage
from graft.system.files import append_json, read_json_lines

MOST_IN_A_ROW = 100
"""Consecutive unreadable images after which the run ends: the disk is gone."""


@dataclass(frozen=True)
class UnreadableImages:
    """Replaces unreadable images and records their names.

    In training the next readable image replaces an unreadable one, so that batches stay full; evaluation replaces
    nothing, and no metric counts it. Every process, worker processes included, appends to the same file.

    Attributes:
        record: the file: one JSON object per line, with "name" and "reason"; it exists once an image was unreadable.
    """

    record: Path

    def load(self, images: ImageSet | CachedImages, index: int, *, replace: bool) -> tuple[Picture | None, int]:
        """(picture, its index); with `replace` the first from `index` on that can be read, else (None, PADDING).

        Raises:
            DataError: MOST_IN_A_ROW cannot be read, or fewer that are all there are.
        """
        few = min(MOST_IN_A_ROW, len(images)) if replace else 1
        for place in range(index, index + few):
            try:
                return images.load(place % len(images)), place % len(images)
            except UnreadableImage as error:
                self.note(images.names[place % len(images)], error)
                last = error
        if replace:
            raise DataError(f"{few} images one after the other can no longer be read, the last one {last}")
        return None, PADDING

    def note(self, name: str, error: UnreadableImage) -> None:
        """Record that `name` is unreadable, and why."""
        append_json(self.record, {"name": name, "reason": f"{error.kind}: {error.reason}"})

    def known(self) -> dict[str, str]:
        """Name → reason of every image found unreadable since the run began, by any process, sorted by name."""
        return self._read()[0]

    def _read(self) -> tuple[dict[str, str], int]:
        """(what `known` gives, number of lines that cannot be read)."""
        rows, damaged = read_json_lines(self.record)
        whole = [(row["name"], row["reason"]) for row in rows if {"name", "reason"} <= row.keys()]
        known = sorted((str(name), str(reason)) for name, reason in whole)
        return dict(known), damaged + len(rows) - len(whole)

    def notes(self) -> list[str]:
        """What a reader of the results ought to know of it."""
        known, damaged = self._read()
        lines = "1 line" if damaged == 1 else f"{damaged:,} lines"
        torn = [f"{lines} of {self.record.name} cannot be read: as many more images may have been unreadable"]
        if not known:
            return torn * bool(damaged)
        names = ", ".join(list(known)[:20]) + (", …" if len(known) > 20 else "")
        count = "1 image" if len(known) == 1 else f"{len(known):,} images"
        return [f"{count} could not be read while training (data.on_error=skip): {names}", *torn * bool(damaged)]


def replace_unreadable(
    pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], rows: list[int], *, replace: bool
) -> npt.NDArray[np.int64]:
    """Fill the unreadable `rows` of decoded images in place, as `UnreadableImages.load` would.

    Returns:
        The labels of all rows; without `replace` those of unreadable rows are PADDING.

    Raises:
        DataError: all are unreadable.
    """
    if not rows:
        return labels
    labels = labels.copy()
    readable = np.delete(np.arange(len(labels)), rows)
    if not len(readable):
        raise DataError(f"none of the {len(labels)} images can be read any more.")
    if replace:
        following = readable[np.searchsorted(readable, rows) % len(readable)]
        pixels[rows], labels[rows] = pixels[following], labels[following]
    else:
        labels[rows] = PADDING
    return labels
