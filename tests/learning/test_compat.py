"""Private APIs of Lightning that Graft uses still do what it needs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor, nn

from graft.learning import compat


class Line(pl.LightningModule):
    """One weight, trained on numbers; records the batches it trains on and the steps at which it validates."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches: list[float] = []
        self.validated: list[int] = []

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        self.batches.append(batch.item())
        return self.layer(batch.view(1, 1)).square().sum()

    def validation_step(self, batch: Tensor, index: int) -> None:
        if index == 0:
            self.validated.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Numbers:
    """A loader of 0, 1, … that can be resumed within an epoch."""

    def __init__(self, count: int) -> None:
        self.count, self.next = count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        start, self.next = self.next, 0
        for number in range(start, self.count):
            self.next = (number + 1) % self.count
            yield torch.tensor([float(number)])

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks], num_sanity_val_steps=0, **(quiet | options)
    )


def test_each_epoch_and_the_last_step_are_validated(tmp_path: Path) -> None:
    model, fit = Line(), trainer(tmp_path, max_steps=8, val_check_interval=3, enable_checkpointing=False)
    compat.validate_at_the_end_too(fit)
    fit.fit(model, Numbers(5), Numbers(1))
    assert model.validated == [3, 5, 8]


class Saver(compat.CheckpointCallback):
    """Writes after step 1 and postpones after step 2."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, filename="saved", save_on_train_epoch_end=False, enable_version_counter=False)
        self.kept: dict[str, Any] = {}
        self.resumable: list[bool] = []

    def write(self, trainer: pl.Trainer, path: str) -> None:
        if trainer.global_step == 1:
            super().write(trainer, path)
        else:
            self.kept = self.postpone(trainer, path)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self.resumable.append(compat.resumable_after_this_step(trainer))
        if trainer.global_step < 3:
            self.save_now(trainer)
            assert self.last_saved_step == trainer.global_step


class Restorer(Callback):
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        compat.restore_loader_state(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        compat.end_restart(trainer)
        assert not trainer.fit_loop.restarting


def test_a_checkpoint_within_an_epoch_is_written_or_kept_and_resumed(tmp_path: Path) -> None:
    saver = Saver(tmp_path)
    trainer(tmp_path, saver, max_epochs=1).fit(Line(), Numbers(5))
    written = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert (written["global_step"], saver.kept["global_step"]) == (1, 2)
    assert saver.resumable == [True, True, True, True, False]

    resumed = Line()
    trainer(tmp_path, Restorer(), max_epochs=1, enable_checkpointing=False).fit(
        resumed, Numbers(5), ckpt_path=tmp_path / "saved.ckpt", weights_only=True
    )
    assert resumed.batches == [1, 2, 3, 4]


def test_the_number_of_averages_is_counted_on_the_cpu(tmp_path: Path) -> None:
    averaging = WeightAveraging()
    assert not compat.has_average(averaging)
    seen: list[str] = []

    class Counter(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            compat.count_averages_on_cpu(averaging)
            seen.append(str(compat.has_average(averaging)))

    trainer(tmp_path, averaging, Counter(), max_epochs=1, enable_checkpointing=False).fit(Line(), Numbers(2))
    assert seen == ["True"]


def test_the_progress_bar_counts_epochs_from_one(tmp_path: Path) -> None:
    described: list[str] = []

    class Recorder(compat.OneBasedProgressBar):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            described.append(str(self.train_progress_bar.description).strip())
            super().on_train_epoch_end(trainer, pl_module)

    options = {"max_epochs": 2, "enable_progress_bar": True, "enable_checkpointing": False}
    trainer(tmp_path, Recorder(), **options).fit(Line(), Numbers(2))
    assert described == ["Epoch 1/2", "Epoch 2/2"]
