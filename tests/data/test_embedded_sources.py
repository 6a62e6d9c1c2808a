"""Data sets embedded in Python packages need neither a download nor an import of those packages."""

import subprocess
import sys

import numpy as np
import pytest
from image_folders import load, sizes
from skimage.data import lfw_subset
from sklearn.datasets import load_digits

from graft.data.sources import digits, faces


def test_with_five_shots_of_faces_the_other_images_are_the_test_set() -> None:
    splits = load("faces", None, shots=5)
    assert splits.counts() == {
        "train": {"face": 5, "no_face": 5},
        "val": {"face": 95, "no_face": 95},
        "test": {"face": 95, "no_face": 95},
    }
    assert "as validation and test images" in splits.notes[0]
    assert not set(splits.train.names) & set(splits.test.names)
    assert set(splits.train.names) != set(load("faces", None, shots=5, seed=1).train.names)


def test_faces_are_photographs_and_the_other_class_is_darker_background() -> None:
    """lfw_subset's first hundred are the faces: bright in the middle, unlike the rest."""
    pool = load("faces", None)
    pixels = np.concatenate([part.pixels for part in pool.parts().values() if part.pixels is not None])
    labels = np.concatenate([part.labels for part in pool.parts().values()])
    middle = pixels[:, 8:17, 8:17].mean(axis=(1, 2, 3))
    assert len(labels) == 200
    assert pixels.shape[1:] == (25, 25, 3)
    assert pixels.max() == 255
    assert middle[labels == 0].mean() > middle[labels == 1].mean() + 20


def test_digits_use_the_whole_range_and_keep_their_test_set() -> None:
    splits = load("digits", None)
    assert sum(sizes(splits)) == 1797
    assert splits.train.pixels is not None
    assert sorted(np.unique(splits.train.pixels))[::16] == [0, 255]
    assert set(splits.test.names) == set(load("digits", None, seed=5).test.names)


@pytest.mark.parametrize("found", [True, False], ids=["by its file", "by its package"])
def test_embedded_pictures_are_those_of_their_packages(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not found:
        monkeypatch.setattr(digits, "bundled_file", lambda package, file: None)
        monkeypatch.setattr(faces, "bundled_file", lambda package, file: None)
    values, labels = digits.scans()
    theirs = load_digits()
    assert np.array_equal(values, theirs.data)
    assert np.array_equal(labels, theirs.target)
    assert np.array_equal(faces.photographs(), lfw_subset())


def test_embedded_pictures_do_not_import_their_packages() -> None:
    """Half a second that the first training step would wait for."""
    look = "import sys; from graft.data.sources import digits, faces; digits.scans(); faces.photographs()"
    code = f"{look}; print({{'sklearn', 'skimage', 'scipy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
