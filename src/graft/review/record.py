"""review.npz: what the comparison page shows of a run's predictions, in under 2 MB for any data set."""

import io
import itertools
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graft.data.labels import NONE
from graft.errors import DataError
from graft.learning.predictions import AnyPredictions, Array, digest
from graft.review.grids import thumbnail
from graft.system.files import read_regular, write_atomically

FILE = "review.npz"
ANSWERS, CELLS = 10_000, 50_000
"""Largest number of kept predictions (of the lowest name digests: the same images in every run), and of kept cells of
the confusion matrix (the largest ones)."""

SIDE = 64

LARGEST = 2**24
"""Largest size of a record in bytes, packed and unpacked; Graft writes at most an eighth of that."""

TYPES = {
    "description": np.uint8, "correct": np.uint32, "totals": np.uint32, "cells": np.uint64, "counts": np.uint32,
    "digests": np.uint64, "labels": np.uint32, "predicted": np.uint32, "confidence": np.uint8, "pictures": np.uint8,
}  # fmt: skip
"""The arrays of a record; "description" is JSON."""


@dataclass(frozen=True)
class Record:
    """The content of review.npz.

    Attributes:
        part: "test", or "val" if nothing was tested.
        classes: names.
        images: number of predicted images.
        correct, totals: per class, int [C]; of images with several labels those for which the label is predicted, and
            all that have it.
        cells, counts: the non-zero cells of the confusion matrix (true * C + predicted) and their values.
        digests, labels, predicted, confidence: of the images whose predictions are kept, see `Answers`, [M]; ascending
            by digest.
        thumbnails: digest to (name, JPEG).
        sets: of labels, see `Answers`.
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
    sets: tuple[tuple[int, ...], ...] | None = None

    def text(self, answer: int) -> str:
        """The class, or the labels, of one of `labels` or `predicted`."""
        if self.sets is None:
            return self.classes[answer]
        return ", ".join(self.classes[index] for index in self.sets[answer]) or NONE

    @property
    def nbytes(self) -> int:
        """Memory of the arrays and pictures."""
        columns = (self.correct, self.totals, self.cells, self.counts, self.digests, self.labels, self.predicted)
        return sum(column.nbytes for column in columns) + sum(len(jpeg) for _, jpeg in self.thumbnails.values())


def record_of(
    predictions: AnyPredictions,
    part: str,
    classes: Sequence[str],
    names: Sequence[str],
    pictures: Sequence[tuple[int, Array]],
) -> Record:
    """The record of a part's predictions.

    Args:
        names: of all images of the part, by index.
        pictures: (position in `predictions`, uint8 [H, W, 3]) of the images to keep a thumbnail of.
    """
    correct, totals = predictions.per_class(len(classes))
    cells, counts = predictions.confusion_cells(len(classes))
    positions = predictions.sample(ANSWERS, names)
    answers = predictions.answers(positions)
    return Record(
        part=part,
        classes=tuple(classes),
        images=len(predictions),
        correct=correct,
        totals=totals,
        cells=cells[:CELLS],
        counts=counts[:CELLS],
        digests=np.array([digest(names[i]) for i in predictions.indices[positions]], dtype=np.uint64),
        labels=answers.labels,
        predicted=answers.predicted,
        confidence=answers.confidence,
        sets=answers.sets,
        thumbnails={
            digest(name): (name, jpeg(thumbnail(image, SIDE)))
            for position, image in pictures
            for name in [names[predictions.indices[position]]]
        },
    )


def jpeg(image: Array) -> bytes:
    """`image` as a JPEG of about 2 kB."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_record(folder: Path, record: Record) -> None:
    """Write review.npz into a run's folder: plain arrays, no pickled objects."""
    pictures = list(record.thumbnails.values())
    description = {
        "version": 2 if record.sets is None else 3,
        "part": record.part,
        "classes": record.classes,
        "images": record.images,
        "names": [name for name, _ in pictures],
        "lengths": [len(content) for _, content in pictures],
        **({} if record.sets is None else {"sets": record.sets}),
    }
    buffer = io.BytesIO()
    arrays: dict[str, Array] = {
        "description": np.frombuffer(json.dumps(description).encode(), dtype=np.uint8),
        "correct": record.correct,
        "totals": record.totals,
        "cells": record.cells,
        "counts": record.counts,
        "digests": record.digests,
        "labels": record.labels,
        "predicted": record.predicted,
        "confidence": np.rint(record.confidence * 255),
        "pictures": np.frombuffer(b"".join(content for _, content in pictures), dtype=np.uint8),
    }
    typed: dict[str, Any] = {name: arrays[name].astype(kind) for name, kind in TYPES.items()}
    np.savez_compressed(buffer, **typed)
    write_atomically(folder / FILE, buffer.getvalue())


def read_record(folder: Path, largest: int = LARGEST) -> Record | None:
    """The record of the run in `folder`, or None. The file is read as data; no code in it is run.

    Args:
        folder: of the run.
        largest: size in bytes, packed and unpacked.

    Raises:
        DataError: it is damaged, too large, or contradicts itself; gives only the reason.
    """
    try:
        content = read_regular(folder / FILE, largest)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = _arrays(archive, largest)
        return _record(json.loads(arrays["description"].tobytes()), arrays)
    except DataError:
        raise
    except Exception as error:  # of a damaged archive zipfile raises anything
        raise DataError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def _arrays(archive: zipfile.ZipFile, largest: int) -> dict[str, Array]:
    """The arrays of a record; their sizes are checked before anything is unpacked."""
    members = archive.infolist()
    if sorted(member.filename for member in members) != sorted(f"{name}.npy" for name in TYPES):
        raise DataError("not the arrays of a record of this version of Graft")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise DataError("compressed in an unknown way")  # whose decompressors unpack without bounds
    unpacked = sum(member.file_size for member in members)
    if unpacked > largest:
        raise DataError(f"unpacks to {unpacked:,} bytes; at most {largest:,} are read")
    arrays = {}
    for name in TYPES:
        with archive.open(f"{name}.npy") as file:
            size = archive.getinfo(f"{name}.npy").file_size
            arrays[name] = _array(file.read(size), name)  # read() alone would unpack all, regardless of the size
    return arrays


def _array(content: bytes, name: str) -> Array:
    """The array in the content of an .npy file: one-dimensional, of the type in `TYPES`."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise DataError(f"{name}: an unknown version of .npy")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    rest = content[file.tell() :]
    if dtype != TYPES[name] or len(shape) != 1 or shape[0] * dtype.itemsize != len(rest):
        raise DataError(f"{name}: {shape} of {dtype} in {len(rest):,} bytes")
    return np.frombuffer(rest, dtype)


def _record(description: Any, arrays: dict[str, Array]) -> Record:
    """The record of these arrays, with every index checked."""
    names, lengths, classes = description["names"], description["lengths"], description["classes"]
    part, images, count = description["part"], description["images"], len(classes)
    texts = [part, *names, *classes]
    numbers = [images, *lengths]
    if not all(isinstance(text, str) for text in texts) or not all(type(n) is int and n >= 0 for n in numbers):
        raise DataError("its description has values of other types")
    sets = None if description.get("sets") is None else tuple(tuple(each) for each in description["sets"])
    if any(type(index) is not int or not 0 <= index < count for each in sets or () for index in each):
        raise DataError("its sets of labels name unknown classes")
    answers = count if sets is None else len(sets)
    pictures = arrays["pictures"].tobytes()
    ends = list(itertools.accumulate(lengths))
    sound = (
        len(arrays["correct"]) == len(arrays["totals"]) == count > 0
        and len(arrays["cells"]) == len(arrays["counts"])
        and len({len(arrays[name]) for name in ("digests", "labels", "predicted", "confidence")}) == 1
        and len(names) == len(lengths)
        and (ends[-1] if ends else 0) == len(pictures)
        and all(arrays[name].size == 0 or arrays[name].max() < answers for name in ("labels", "predicted"))
        and int(arrays["cells"].max(initial=0)) < count**2
        and bool((arrays["correct"] <= arrays["totals"]).all())
    )
    if not sound:
        raise DataError("its arrays contradict each other")
    jpegs = [pictures[end - length : end] for length, end in zip(lengths, ends, strict=True)]
    thumbnails = {digest(name): (name, jpeg) for name, jpeg in zip(names, jpegs, strict=True)}
    columns = {name: arrays[name] for name in TYPES if name not in ("description", "pictures", "confidence")}
    confidence = arrays["confidence"] / 255
    return Record(part, tuple(classes), images, confidence=confidence, thumbnails=thumbnails, sets=sets, **columns)
