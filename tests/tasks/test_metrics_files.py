"""Metrics in the files of a run."""

from pathlib import Path

import pytest
from commands import TINY
from PIL import Image

import graft

SHORT = (
    *TINY, "trainer.max_epochs=2", "trainer.baseline=false", "logger.tensorboard=false", "callbacks.progress=none",
)  # fmt: skip


def test_the_row_of_the_last_step_has_the_epoch_of_that_step(tmp_path: Path) -> None:
    run = graft.train(*SHORT, folder=tmp_path, echo=False)
    header, *rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    last = dict(zip(header, rows[-1], strict=True))
    assert last["epoch"] == "1"
    assert float(last["test/acc"]) == pytest.approx(run.metrics["test/acc"])


def test_a_class_without_test_images_has_no_accuracy(tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("val", "ab"), ("test", "a")):
        for name in names:
            for number in range(8):
                file = tmp_path / "set" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (number * 20, 255 * (name == "b"), 9)).save(file)
    words = ("data=folder", f"data.root={tmp_path / 'set'}", "data.batch_size=4")
    run = graft.train(*SHORT, *words, folder=tmp_path / "run", echo=False)
    assert "test/acc/a" in run.metrics
    assert "test/acc/b" not in run.metrics
