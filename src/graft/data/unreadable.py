"""Images that turn out to be unreadable during training or evaluation (data.on_error=skip)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graft.data.bands import Levels
from graft.data.cached_images import CachedImages
from graft.data.images import ImageSet
from graft.data.labels import PADDING, Labels
from graft.data.transforms import Picture
from graft.errors import DataError, UnreadableImage, listed
from graft.system.files import append_json, read_json_lines

MAX_CONSECUTIVE = 100
"""Number of consecutive unreadable images after which the run fails, because the disk is probably gone."""


@dataclass(frozen=True)
class UnreadableImages:
    """Replaces unreadable images and records their names.

    In training an unreadable image is replaced by the next readable one, so that batches stay full; in evaluation it
    becomes padding, which metrics ignore. All processes, worker processes included, append to the same file.

    Attributes:
        record: the file, one JSON object per line with "name" and "reason"; created with the first unreadable image.
    """

    record: Path

    def load(self, images: ImageSet | CachedImages, index: int, *, replace: bool) -> tuple[Picture | None, int]:
        """(image, its index): image `index`, or with `replace` the next readable one; (None, PADDING) if unreadable.

        Raises:
            DataError: none of MAX_CONSECUTIVE images, or of all if there are fewer, can be read.
        """
        attempts = min(MAX_CONSECUTIVE, len(images)) if replace else 1
        for candidate in range(index, index + attempts):
            try:
                return images.load(candidate % len(images)), candidate % len(images)
            except UnreadableImage as error:
                self.note(images.names[candidate % len(images)], error)
                last = error
        if replace:
            raise DataError(f"{attempts} consecutive images cannot be read; the last is {last}")
        return None, PADDING

    def note(self, name: str, error: UnreadableImage) -> None:
        """Record that the image `name` is unreadable, with the reason."""
        append_json(self.record, {"name": name, "reason": f"{error.kind}: {error.reason}"})

    def known(self) -> dict[str, str]:
        """Name → reason of all images that any process found unreadable in this run, sorted by name."""
        return self._read()[0]

    def _read(self) -> tuple[dict[str, str], int]:
        """(result of `known`, number of damaged lines)."""
        rows, damaged = read_json_lines(self.record)
        whole = [(row["name"], row["reason"]) for row in rows if {"name", "reason"} <= row.keys()]
        known = sorted((str(name), str(reason)) for name, reason in whole)
        return dict(known), damaged + len(rows) - len(whole)

    def notes(self) -> list[str]:
        """Notes for the reader of the results."""
        known, damaged = self._read()
        lines = "1 line" if damaged == 1 else f"{damaged:,} lines"
        damage = [f"{lines} of {self.record.name} cannot be read, so that many more images may have been unreadable"]
        if not known:
            return damage * bool(damaged)
        names = listed(known, 20, counted=False)
        count = "1 image" if len(known) == 1 else f"{len(known):,} images"
        return [f"{count} could not be read while training (data.on_error=skip): {names}", *damage * bool(damaged)]


def replace_unreadable(pixels: Levels, labels: Labels, rows: list[int], *, replace: bool) -> Labels:
    """Replace the unreadable `rows` of decoded images in place, like `UnreadableImages.load`.

    Args:
        pixels: uint8 or uint16 [N, H, W, C].
        labels: of the images, see `graft.data.labels`.
        rows: indices of the unreadable images.
        replace: by the next readable image, as in training; False: mark them as padding, as in evaluation.

    Returns:
        The labels; without `replace` those of unreadable rows are PADDING.

    Raises:
        DataError: all images are unreadable.
    """
    if not rows:
        return labels
    labels = labels.copy()
    readable = np.delete(np.arange(len(labels)), rows)
    if not len(readable):
        raise DataError(f"none of the {len(labels)} images can be read.")
    if replace:
        following = readable[np.searchsorted(readable, rows) % len(readable)]
        pixels[rows], labels[rows] = pixels[following], labels[following]
    else:
        labels[rows] = PADDING
    return labels
