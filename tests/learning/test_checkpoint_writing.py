"""Checkpoints are written completely, and rarely enough not to slow training."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import graft
from graft.learning.checkpoint_writing import AtomicCheckpointIO, BestCheckpoint, LatestCheckpoint


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = self.current_epoch == 6

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, **limits: int) -> list[int]:
    """Train; returns the epoch in the checkpoint after each time it was written."""
    written: list[int] = []

    class Counting(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            super().save_checkpoint(checkpoint, path, storage_options)
            written.append(torch.load(path, weights_only=True)["epoch"])

    last = LatestCheckpoint(filename="last", dirpath=folder, enable_version_counter=False)
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=[last], plugins=[Counting()], logger=False, enable_progress_bar=False,
        enable_model_summary=False, **limits,
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(1, 1)))
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == trainer.current_epoch - 1
    return written


@pytest.mark.parametrize(
    ("limits", "end"), [({"max_epochs": 5}, 4), ({"max_steps": 3}, 2), ({"max_epochs": 9}, 6)], ids=str
)
def test_checkpoints_that_take_too_long_are_written_at_the_start_and_end_only(
    limits: dict[str, int], end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatestCheckpoint, "SHARE", 0)
    assert fit(tmp_path, **limits) == [0, end]


def test_cheap_checkpoints_are_written_in_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatestCheckpoint, "SHARE", 1e9)
    assert fit(tmp_path, max_epochs=4) == [0, 1, 2, 3]


def test_a_failed_checkpoint_leaves_the_previous_one(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, file)
    with pytest.raises(AttributeError, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"epoch": lambda: 2}, file)
    assert torch.load(file, weights_only=True) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def best_of(folder: Path, *words: str) -> dict[str, Any]:
    usual = ("model=vgg_mini", "model.weights=bundled", "data=digits", "augment=none", "review=none", "logger=none")
    limits = [f"trainer.limit_{part}_batches=2" for part in ("train", "val", "test")]
    graft.train(
        *usual, *limits, "optimized_metric=val/loss", "trainer.precision=32-true", "trainer.max_epochs=5", *words,
        folder=folder, echo=False,
    )  # fmt: skip
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)


@pytest.mark.parametrize("words", [(), ("freeze=features",), ("callbacks.ema=0.9",), ("freeze=gradual",)], ids=str)
def test_best_weights_kept_in_memory_equal_those_written_at_once(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(
        AtomicCheckpointIO,
        "save_checkpoint",
        lambda *given, **named: (written.append(Path(given[2]).name), write(*given, **named))[1],
    )
    monkeypatch.setattr(BestCheckpoint, "SHARE", 1e9)
    usual = best_of(tmp_path / "usual", *words)
    often, written[:] = written.count("best.ckpt"), []
    monkeypatch.setattr(BestCheckpoint, "SHARE", 0)
    waiting = best_of(tmp_path / "waiting", *words)
    assert written.count("best.ckpt") <= 2 < often, "or the test shows nothing"
    assert written[-1] == "last.ckpt", "last.ckpt refers to a best.ckpt that is there"
    assert usual["global_step"] == waiting["global_step"]
    assert usual["graft"]["metrics"] == waiting["graft"]["metrics"]
    assert usual["state_dict"].keys() == waiting["state_dict"].keys()
    assert all(torch.equal(usual["state_dict"][name], waiting["state_dict"][name]) for name in usual["state_dict"])
