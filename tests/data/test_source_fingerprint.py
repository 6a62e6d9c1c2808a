"""The fingerprint of a data set, which decides which runs may be averaged."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from graft.data.loading import load_splits


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, colour in (("ants", 10), ("bees", 200)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (8, 8), (colour, index, 0)).save(tmp_path / "set" / name / f"{index}.png")
    return tmp_path / "set"


def source(root: Path, **options: Any) -> str:
    return load_splits("folder", root=root, **({"seed": 0} | options)).source


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"shots": 3}, {"shots": 3, "seed": 2}, {"folds": 3, "fold": 1}, {"val_fraction": 0.0}]
)
def test_the_fingerprint_does_not_depend_on_the_split(options: dict[str, Any], root: Path) -> None:
    assert source(root, **options) == source(root)


def test_the_fingerprint_does_not_depend_on_the_location(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "elsewhere")
    assert source(tmp_path / "elsewhere") == source(root)


@pytest.mark.parametrize("change", ["another content", "another label", "one less", "one more", "another name"])
def test_different_sets_have_different_fingerprints(change: str, root: Path) -> None:
    before = source(root)
    file = root / "ants" / "0.png"
    if change == "another content":
        Image.new("RGB", (64, 64), (1, 2, 3)).save(file)
    elif change == "another label":
        file.rename(root / "bees" / "extra.png")
    elif change == "one less":
        file.unlink()
    elif change == "one more":
        shutil.copy(file, root / "ants" / "more.png")
    else:
        file.rename(root / "ants" / "renamed.png")
    assert source(root) != before


def test_embedded_sets_have_a_fingerprint() -> None:
    first, second = (load_splits("digits", root=None, seed=seed).source for seed in (0, 1))
    assert first == second != ""
