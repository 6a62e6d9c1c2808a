"""Copies across splits are reported, dropped from training or kept on one side, as data.duplicates says."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from graft.config import conf_dir
from graft.config.config_hash import config_hash
from graft.config.registration import register
from graft.config.schema import TrainConfig
from graft.data.splits import Splits
from graft.errors import DataError
from graft.inspection import copies
from graft.tasks import inspect
from graft.tasks.checks import settle
from graft.tasks.data import open_data


def draw(file: Path, number: int) -> None:
    """A picture of smooth random shapes, different for each number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(256, size=(6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC).save(file)


def brighten(source: Path, target: Path) -> None:
    """A near duplicate."""
    with Image.open(source) as image:
        image.point([min(255, value + 8) for value in range(256)] * 3).save(target)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Six training and three test images per class; of test, one is a copy, one nearly a copy, of training images."""
    root = tmp_path / "photos"
    for label, name in enumerate("ab"):
        for number in range(6):
            draw(root / "train" / name / f"{number}.png", 100 * label + number)
        for number in range(3):
            draw(root / "test" / name / f"{number}.png", 100 * label + 50 + number)
    shutil.copy(root / "train/a/2.png", root / "test/a/0.png")
    brighten(root / "train/b/4.png", root / "test/b/1.png")
    return root


def config(root: Path, *overrides: str) -> TrainConfig:
    register()
    words = ("model=vgg_mini", "model.weights=bundled", "data=folder", f"data.root={root}", "data.val_fraction=0")
    with initialize_config_dir(str(conf_dir())):
        return settle(compose("train", [*words, f"paths.cache={root.parent}/cache", *overrides]))


def opened(root: Path, *overrides: str) -> Splits:
    return open_data(config(root, *overrides))


def note_on_copies(splits: Splits) -> str:
    [note] = [note for note in splits.notes if "copies" in note]
    return note


def test_training_names_identical_files_and_after_inspect_near_duplicates_too(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = opened(published)
    assert "1 training image with identical copies" in note_on_copies(splits)
    assert "train/a/2.png = test/a/0.png" in note_on_copies(splits)
    assert len(splits.train) == 12
    register()
    with initialize_config_dir(str(conf_dir())):
        words = ["data=folder", f"data.root={published}", "data.val_fraction=0", "sheets=0"]
        inspected = compose("inspect", [*words, f"paths.cache={published.parent}/cache"])
    with pytest.raises(DataError, match="same image in train and test"):
        inspect.main(inspected)
    assert "2 training images with copies" in note_on_copies(opened(published))


def test_drop_removes_from_training_what_is_copied_in_test(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = opened(published, "data.duplicates=drop")
    assert sorted(set(opened(published).train.names) - set(splits.train.names)) == ["train/a/2.png", "train/b/4.png"]
    assert dict(splits.dropped)["train/b/4.png"] == "copy of test/b/1.png (val and test)"
    assert "2 training images dropped" in note_on_copies(splits)
    assert len(splits.test) == 6
    assert splits.fingerprint() != opened(published).fingerprint()
    monkeypatch.setattr(copies, "examine", lambda *args: pytest.fail("decodes again what it has described"))
    assert opened(published, "data.duplicates=drop").fingerprint() == splits.fingerprint()
    for file in published.glob("train/a/*.png"):
        shutil.copy(file, published / "test" / "a" / f"copy{file.name}")
    monkeypatch.undo()
    with pytest.raises(DataError, match='all training images of class "a" are copies'):
        opened(published, "data.duplicates=drop")


def test_group_is_refused_where_the_published_splits_divide_copies(published: Path) -> None:
    with pytest.raises(DataError, match=r"2 groups of copies are divided.*published.*\n.*data\.duplicates=drop"):
        opened(published, "data.duplicates=group")


def test_group_keeps_copies_in_one_fold(published: Path) -> None:
    for number in range(6):
        brighten(published / f"train/a/{number}.png", published / f"train/a/again{number}.png")
        shutil.copy(published / f"train/b/{number}.png", published / f"train/b/again{number}.png")
    for test in ("a/0", "b/1"):
        (published / f"test/{test}.png").unlink()
    words = ("data.duplicates=group", "data.folds=3", "data.val_fraction=0.1")
    for fold in range(3):
        splits = opened(published, *words, f"data.fold={fold}")
        for part in splits.parts().values():
            names = set(part.names)
            for name in names:
                partner = (
                    name.replace("again", "") if "again" in name else os.path.dirname(name) + "/again" + Path(name).name
                )
                assert name.startswith("test") or partner in names


def test_what_is_done_with_copies_is_part_of_the_configuration_that_tells_runs_apart(published: Path) -> None:
    hashes = {config_hash(config(published, f"data.duplicates={word}")) for word in ("keep", "drop", "group")}
    assert len(hashes) == 3
