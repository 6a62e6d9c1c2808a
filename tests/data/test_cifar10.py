"""CIFAR-10 as class folders and in its publisher's binary batches."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from image_folders import fill, load, sizes

from graft.data.loading import locate
from graft.errors import DataError, NotAvailable


def cifar_images(root: Path) -> Path:
    from graft.data.sources.cifar10 import CLASSES

    return fill(root, {f"{part}/{name}": 4 for part in ("train", "test") for name in CLASSES})


def cifar_batches(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for batch in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {"data": np.full((10, 3072), 7, np.uint8), "labels": list(range(10))}
        (folder / batch).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return folder


@pytest.mark.parametrize("inside", [True, False])
def test_cifar10_is_found_as_class_folders(tmp_path: Path, inside: bool) -> None:
    folder = cifar_images(tmp_path / "cifar10")
    assert sizes(load("cifar10", folder if inside else tmp_path)) == (30, 10, 40)


@pytest.mark.parametrize("inside", [True, False])
def test_cifar10_is_read_from_batches_in_torchvision_s_class_order(
    tmp_path: Path, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    from graft.data.sources.cifar10 import CLASSES

    folder = cifar_batches(tmp_path / "cifar-10-batches-py")
    with pytest.raises(DataError, match="incomplete or damaged"):  # these are not the published bytes
        load("cifar10", tmp_path)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    splits = load("cifar10", folder if inside else tmp_path)
    assert sizes(splits) == (40, 10, 10)
    assert splits.classes == CLASSES == tuple(sorted(CLASSES))
    assert splits.test.names[3] == "test/cat/00003"
    assert splits.test.load(0).size == (32, 32)


def test_cifar10_s_archive_belongs_in_the_data_folder(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "cifar-10-batches-py", tmp_path / "cifar10"):
        error = locate("cifar10", root, download=False)
        assert isinstance(error, NotAvailable)
        assert f"{tmp_path}/cifar-10-python.tar.gz" in str(error)
