"""curves.png: what it shows of metrics.csv, and when a run writes it."""

import signal
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, signal_after_first_checkpoint
from PIL import Image

from graft.review.curves import curves
from graft.review.drawing import WRONG

ROWS = [
    {"step": 0.0, "val/loss": 2.3, "val/acc": 0.1},
    {"step": 5.0, "train/loss_step": 2.0, "train/acc_step": 0.2},
    {"step": 10.0, "train/loss": 1.5, "train/acc": 0.5, "val/loss": 1.4, "val/acc": 0.6},
    {"step": 20.0, "train/loss": 1.0, "train/acc": 0.7, "val/loss": 1.6, "val/acc": 0.5},
]


def coloured(picture: Image.Image, colour: str) -> int:
    """Number of pixels of a colour."""
    value = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.asarray(picture) == value).all(axis=2).sum())


def test_training_without_validation_has_one_curve() -> None:
    whole = curves(ROWS, "run", "val/acc")
    training = curves([{k: v for k, v in row.items() if not k.startswith("val")} for row in ROWS], "run", "val/acc")
    assert whole is not None
    assert training is not None
    assert coloured(whole, WRONG) > 100
    assert coloured(training, WRONG) == 0


def test_there_is_no_picture_without_a_value() -> None:
    assert curves([], "run", "val/acc") is None
    assert curves([{"step": 3.0, "lr/head": 0.1}], "run", "val/acc") is None


@pytest.mark.parametrize("name", ["a $x$ name", "개미"])
def test_a_run_may_have_any_name(name: str) -> None:
    assert curves(ROWS, name, "val/loss", "min") is not None


def test_an_interrupted_run_has_its_curves(tmp_path: Path) -> None:
    words = (*TINY, "review.pictures=true", "trainer.max_epochs=500")
    code, _ = signal_after_first_checkpoint(tmp_path / "run", signal.SIGTERM, *words)
    assert code != 0
    assert (tmp_path / "run/curves.png").is_file()
    assert not (tmp_path / "run/confusion.png").exists()
