"""What becomes of an image that can no longer be read when its turn comes, with data.on_error=skip."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.cached_images import HeldImages
from graft.data.images import ImageSet
from graft.data.sampler import PADDING
from graft.data.transforms import Picture
from graft.errors import DataError, UnreadableImage
from graft.system.files import append_json, read_json_lines

MOST_IN_A_ROW = 100
"""So many images one after the other that cannot be read are no accident: the disk is gone."""


@dataclass(frozen=True)
class LostImages:
    """Stands in for images that cannot be read, and writes down which they were.

    In training the next one that can be read takes the place of a lost one, so that batches stay full; in evaluation
    nothing does, and no figure counts it. Every process, and every process that decodes for it, appends to the same
    file.

    Attributes:
        record: the file: a JSON object a line, with "name" and "reason"; not there while nothing was lost.
    """

    record: Path

    def load(self, images: ImageSet | HeldImages, index: int, *, replace: bool) -> tuple[Picture | None, int]:
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
        """Write down that `name` was lost."""
        append_json(self.record, {"name": name, "reason": f"{error.kind}: {error.reason}"})

    def known(self) -> dict[str, str]:
        """Name → reason of all that were lost since the run began, by any process, in order of name."""
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


def stand_in(
    pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], lost: list[int], *, replace: bool
) -> npt.NDArray[np.int64]:
    """Fill the rows `lost` of decoded pictures, in place, as `LostImages.load` would; returns the labels that go with
    it, where PADDING is what counts nowhere.

    Raises:
        DataError: all are lost.
    """
    if not lost:
        return labels
    labels = labels.copy()
    readable = np.delete(np.arange(len(labels)), lost)
    if not len(readable):
        raise DataError(f"none of the {len(labels)} images can be read any more.")
    if replace:
        following = readable[np.searchsorted(readable, lost) % len(readable)]
        pixels[lost], labels[lost] = pixels[following], labels[following]
    else:
        labels[lost] = PADDING
    return labels
