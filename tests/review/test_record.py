"""review.npz: small, safe to read, and equal to the predictions."""

import json
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graft.errors import DataError
from graft.learning.predictions import Predictions, digest
from graft.review.record import FILE, read_record, record_of, write_record


def drawn(count: int, classes: int) -> Predictions:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, classes, (2, count))
    predicted = np.where(random.random(count) < 0.5, labels, predicted)
    sure = random.random(count)
    return Predictions(
        5, 1, np.arange(count), labels, predicted, sure, sure, np.zeros((count, 0)), np.zeros((0, 1)), np.zeros(0, int)
    )


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    predictions, names = drawn(30, 3), [f"개/{i}.jpg" for i in range(30)]
    image = np.random.default_rng(0).integers(0, 255, (224, 224, 3)).astype(np.uint8)
    write_record(tmp_path, record_of(predictions, "test", ["개", "b", "c"], names, [(4, image), (9, image)]))
    found = read_record(tmp_path)
    assert found is not None
    assert (found.part, found.classes, found.images) == ("test", ("개", "b", "c"), 30)
    matrix = np.zeros(9, int)
    matrix[found.cells.astype(int)] = found.counts
    assert np.array_equal(matrix.reshape(3, 3), predictions.confusion(3))
    assert found.correct.sum() == predictions.correct.sum()
    assert {found.thumbnails[digest(names[i])][0] for i in (4, 9)} == {names[4], names[9]}
    assert all(content.startswith(b"\xff\xd8") for _, content in found.thumbnails.values())
    answers = {
        int(key): (label, answer)
        for key, label, answer in zip(found.digests, found.labels, found.predicted, strict=True)
    }
    assert answers == {digest(names[i]): (predictions.labels[i], predictions.predicted[i]) for i in range(30)}


def test_a_record_of_fifty_thousand_images_of_a_thousand_classes_is_under_two_megabytes(tmp_path: Path) -> None:
    count, classes = 50_000, 1000
    noise = np.random.default_rng(0).integers(0, 255, (48, 224, 224, 3)).astype(np.uint8)
    names = [f"some/long/folder/name/of/a/class/{i}.jpg" for i in range(count)]
    pictures = list(enumerate(noise))
    write_record(
        tmp_path, record_of(drawn(count, classes), "val", [f"class {i}" for i in range(classes)], names, pictures)
    )
    assert (tmp_path / FILE).stat().st_size < 2_000_000
    found = read_record(tmp_path)
    assert found is not None
    assert len(found.digests) == 10_000
    assert sorted(found.digests) == sorted(map(digest, names))[:10_000], "the same images in every run"


def test_reading_the_record_of_a_run_without_one_gives_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """The arrays of a valid record."""
    image = np.zeros((64, 64, 3), np.uint8)
    write_record(tmp_path, record_of(drawn(30, 3), "test", "abc", [f"{i}.jpg" for i in range(30)], [(4, image)]))
    with np.load(tmp_path / FILE) as file:
        return {name: file[name] for name in file.files}


def described(arrays: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """`arrays` with another description."""
    description = json.loads(arrays["description"].tobytes()) | changed
    return arrays | {"description": np.frombuffer(json.dumps(description).encode(), np.uint8)}


BROKEN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "an object": lambda arrays: arrays | {"cells": np.array([{"a": 1}], dtype=object)},
    "an unknown predicted class": lambda arrays: arrays | {"predicted": arrays["predicted"] + np.uint32(3)},
    "an unknown true class": lambda arrays: arrays | {"labels": arrays["labels"] + np.uint32(2**31)},
    "an unknown cell": lambda arrays: arrays | {"cells": arrays["cells"] + np.uint64(9)},
    "more correct than in total": lambda arrays: arrays | {"correct": arrays["totals"] + np.uint32(1)},
    "columns of different lengths": lambda arrays: arrays | {"labels": arrays["labels"][:-1]},
    "two dimensions": lambda arrays: arrays | {"labels": arrays["labels"][:, None]},
    "another type": lambda arrays: arrays | {"confidence": arrays["confidence"].astype(float)},
    "a missing array": lambda arrays: {name: array for name, array in arrays.items() if name != "cells"},
    "an additional array": lambda arrays: arrays | {"more": np.zeros(3)},
    "no classes": lambda arrays: described(arrays, classes=[]),
    "classes that are numbers": lambda arrays: described(arrays, classes=[1, 2, 3]),
    "a length below 0": lambda arrays: described(arrays, lengths=[-1]),
    "a length beyond the end": lambda arrays: described(arrays, lengths=[10**9]),
    "a set with an unknown label": lambda arrays: described(arrays, sets=[[0], [1], [3]]),
    "a set that is a number": lambda arrays: described(arrays, sets=[0, 1, 2]),
    "fewer sets than are predicted": lambda arrays: described(arrays, sets=[[0], [1]]),
    "no description": lambda arrays: arrays | {"description": np.frombuffer(b"[]", np.uint8)},
    "a description nested too deeply": lambda arrays: arrays | {"description": np.frombuffer(b"[" * 10**5, np.uint8)},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_record_that_contradicts_itself_is_refused(kind: str, record: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / FILE, **BROKEN[kind](record))
    with pytest.raises(DataError):
        read_record(tmp_path)


def test_flipped_bits_are_detected_or_harmless(record: dict[str, Any], tmp_path: Path) -> None:
    content, draw = (tmp_path / FILE).read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        position = draw.randrange(len(content))
        flipped = content[:position] + bytes([content[position] ^ 1 << draw.randrange(8)]) + content[position + 1 :]
        (tmp_path / FILE).write_bytes(flipped)
        try:
            assert read_record(tmp_path) is not None
        except DataError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_truncated_record_is_refused(cut: int, record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:cut])
    with pytest.raises(DataError):
        read_record(tmp_path)


def bomb(file: Path, arrays: dict[str, Any], method: int, size: int) -> None:
    """A record whose pictures are `size` zeros; those are packed into a thousandth."""
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                count = size if name == "pictures" else array.size
                kind = np.lib.format.dtype_to_descr(array.dtype)
                np.lib.format.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": (count,)})
                if name != "pictures":
                    member.write(array.tobytes())
                elif method != zipfile.ZIP_STORED:
                    for _ in range(size // 2**20):
                        member.write(bytes(2**20))


SIZE = 2**28

BOMBS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "deflated": lambda file, arrays: bomb(file, arrays, zipfile.ZIP_DEFLATED, SIZE),
    "bzip2": lambda file, arrays: bomb(file, arrays, zipfile.ZIP_BZIP2, SIZE),
    "lzma": lambda file, arrays: bomb(file, arrays, zipfile.ZIP_LZMA, SIZE),
    "a shape without its content": lambda file, arrays: bomb(file, arrays, zipfile.ZIP_STORED, 2**40),
    "a size that is a lie": lambda file, arrays: lie(file, arrays),
}


def lie(file: Path, arrays: dict[str, Any]) -> None:
    """The deflated one, which says that it unpacks to a kilobyte."""
    bomb(file, arrays, zipfile.ZIP_DEFLATED, SIZE)
    with zipfile.ZipFile(file) as archive:
        size = archive.getinfo("pictures.npy").file_size
    content = file.read_bytes()
    assert content.count(size.to_bytes(4, "little")) >= 1
    file.write_bytes(content.replace(size.to_bytes(4, "little"), (1024).to_bytes(4, "little")))


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_that_decompresses_to_much_is_refused_in_bounded_memory(
    kind: str, record: dict[str, Any], tmp_path: Path
) -> None:
    BOMBS[kind](tmp_path / FILE, record)
    assert (tmp_path / FILE).stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(DataError):
        read_record(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25


def test_a_named_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(DataError, match="regular"):
        read_record(tmp_path)
