"""review.npz: small, safe to read, and what was said."""

from pathlib import Path

import numpy as np
import pytest

from graft.predictions import Predictions, digest
from graft.review.record import FILE, read_record, record_of, write_record


def drawn(count: int, classes: int) -> Predictions:
    random = np.random.default_rng(0)
    labels, predicted = random.integers(0, classes, (2, count))
    predicted = np.where(random.random(count) < 0.5, labels, predicted)
    sure = random.random(count)
    return Predictions(
        5, 1, np.arange(count), labels, predicted, sure, sure, np.zeros((count, 0)), np.zeros((0, 1)), np.zeros(0, int)
    )


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    predictions, names = drawn(30, 3), [f"개/{i}.jpg" for i in range(30)]
    image = np.random.default_rng(0).integers(0, 255, (224, 224, 3)).astype(np.uint8)
    write_record(tmp_path, record_of(predictions, "test", ["개", "b", "c"], names, [(4, image), (9, image)]))
    found = read_record(tmp_path)
    assert found is not None
    assert (found.part, found.classes, found.images) == ("test", ("개", "b", "c"), 30)
    matrix = np.zeros(9, int)
    matrix[found.cells.astype(int)] = found.counts
    assert np.array_equal(matrix.reshape(3, 3), predictions.confusion(3))
    assert found.correct.sum() == predictions.right.sum()
    assert {found.thumbnails[digest(names[i])][0] for i in (4, 9)} == {names[4], names[9]}
    assert all(content.startswith(b"\xff\xd8") for _, content in found.thumbnails.values())
    said = {
        int(key): (label, answer)
        for key, label, answer in zip(found.digests, found.labels, found.predicted, strict=True)
    }
    assert said == {digest(names[i]): (predictions.labels[i], predictions.predicted[i]) for i in range(30)}


def test_it_stays_under_two_megabytes_with_a_thousand_classes_and_fifty_thousand_images(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_what_cannot_be_read_is_none_and_runs_no_code(content: bytes | None, tmp_path: Path) -> None:
    if content is None:
        np.savez(tmp_path / FILE, told=np.array([{"a": 1}], dtype=object))
    else:
        (tmp_path / FILE).write_bytes(content)
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "nowhere") is None
