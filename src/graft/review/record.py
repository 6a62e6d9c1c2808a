"""review.npz: what the comparison page shows of a run's predictions, in under 2 MB whatever the data set."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graft.files import open_regular, write_atomically
from graft.predictions import Array, Predictions, digest
from graft.review.grids import thumbnail

FILE = "review.npz"
ANSWERS, CELLS = 10_000, 50_000
"""Images whose prediction is kept (those of the lowest digests, the same in every run), and cells of the confusion
matrix (the largest)."""

SIDE = 64


@dataclass(frozen=True)
class Record:
    """What review.npz holds.

    Attributes:
        part: "test", or "val" where nothing was tested.
        classes: names.
        images: how many were predicted.
        correct, totals: per class, int [C].
        cells, counts: the confusion matrix's non-zero cells (true * C + predicted) and what is in them.
        digests, labels, predicted: of the images whose prediction is kept, [M]; ascending by digest.
        confidence: of the predicted class, in [0, 1], [M].
        thumbnails: digest to (name, JPEG).
    """

    part: str
    classes: tuple[str, ...]
    images: int
    correct: Array
    totals: Array
    cells: Array
    counts: Array
    digests: Array
    labels: Array
    predicted: Array
    confidence: Array
    thumbnails: dict[int, tuple[str, bytes]]


def record_of(
    predictions: Predictions,
    part: str,
    classes: Sequence[str],
    names: Sequence[str],
    pictures: Sequence[tuple[int, Array]],
) -> Record:
    """Condense predictions.

    Args:
        names: of all images of the part, by index.
        pictures: (position in `predictions`, uint8 [H, W, 3]) of the images to keep a thumbnail of.
    """
    correct, totals = predictions.per_class(len(classes))
    cells, counts = predictions.confusion_cells(len(classes))
    positions = predictions.sample(ANSWERS, names)
    return Record(
        part=part,
        classes=tuple(classes),
        images=len(predictions),
        correct=correct,
        totals=totals,
        cells=cells[:CELLS],
        counts=counts[:CELLS],
        digests=np.array([digest(names[i]) for i in predictions.indices[positions]], dtype=np.uint64),
        labels=predictions.labels[positions],
        predicted=predictions.predicted[positions],
        confidence=predictions.confidence[positions],
        thumbnails={
            digest(name): (name, jpeg(thumbnail(image, SIDE)))
            for position, image in pictures
            for name in [names[predictions.indices[position]]]
        },
    )


def jpeg(image: Array) -> bytes:
    """A thumbnail in about 2 kB."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_record(folder: Path, record: Record) -> None:
    """Write review.npz into a run's folder: plain arrays, no pickled objects."""
    pictures = list(record.thumbnails.values())
    told = {
        "version": 1,
        "part": record.part,
        "classes": record.classes,
        "images": record.images,
        "names": [name for name, _ in pictures],
        "lengths": [len(content) for _, content in pictures],
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        told=np.frombuffer(json.dumps(told).encode(), dtype=np.uint8),
        correct=record.correct.astype(np.uint32),
        totals=record.totals.astype(np.uint32),
        cells=record.cells.astype(np.uint64),
        counts=record.counts.astype(np.uint32),
        digests=record.digests,
        labels=record.labels.astype(np.uint32),
        predicted=record.predicted.astype(np.uint32),
        confidence=np.rint(record.confidence * 255).astype(np.uint8),
        pictures=np.frombuffer(b"".join(content for _, content in pictures), dtype=np.uint8),
    )
    write_atomically(folder / FILE, buffer.getvalue())


def read_record(folder: Path) -> Record | None:
    """The record of the run in `folder`; None where there is none, or none that can be read. Runs no code from it."""
    try:
        with open_regular(folder / FILE) as opened, np.load(opened, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
        told = json.loads(arrays.pop("told").tobytes())
        content = arrays.pop("pictures").tobytes()
        ends = np.cumsum(told["lengths"], dtype=int)
        thumbnails = {
            digest(name): (name, content[end - length : end])
            for name, length, end in zip(told["names"], told["lengths"], ends, strict=True)
        }
        arrays["confidence"] = arrays["confidence"] / 255
        return Record(told["part"], tuple(told["classes"]), told["images"], thumbnails=thumbnails, **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
