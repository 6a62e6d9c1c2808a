"""Progress of training: a bar for a terminal, and one line per validation and epoch."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.text import Text

from graft.config.task import MULTI_LABEL, SINGLE_LABEL
from graft.learning.compat import OneBasedProgressBar
from graft.system.escaping import printable


class MetricsProgressBar(OneBasedProgressBar):
    """Lightning's progress bar with Graft's metrics, without the logger's version number."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar, in the first process only."""
        if self.progress is not None:
            self.progress.console.print(Text(printable(" ".join(map(str, args)))))
        elif self.is_enabled:
            super().print(*args, **kwargs)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if "/" in name}


class EpochLines(Callback):
    """Writes one line per epoch with its metrics and duration, and one per validation within an epoch.

    Args:
        write: called with each line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write
        self.started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()  # a run that resumes within an epoch gets no on_train_epoch_start for it

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # without a validation, `results` gets this epoch's metrics only after the callbacks
        shown = shown_metrics({**pl_module.results, **pl_module.training_figures()})  # type: ignore[operator, dict-item]
        seconds = time.perf_counter() - self.started
        self.write(f"{epoch_of(trainer)}  {shown}  {seconds:.1f} s")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ends = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
        if trainer.state.fn != "fit" or ends:
            return  # the line of the epoch has these metrics
        results: dict[str, float] = pl_module.results  # type: ignore[assignment]
        self.write(f"{epoch_of(trainer)}, step {trainer.global_step}  {shown_metrics(results)}")


def epoch_of(trainer: pl.Trainer) -> str:
    """ "epoch 2/5", counted from 1; "epoch 2" without a number of epochs."""
    limit = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
    return f"epoch {trainer.current_epoch + 1}{limit}"


def shown_metrics(results: Mapping[str, float]) -> str:
    """Loss and accuracy (with several labels micro F1 and mAP) of training and validation, as far as they are known."""
    task = MULTI_LABEL if f"val/{MULTI_LABEL.headline}" in results else SINGLE_LABEL
    names = ("train/loss", f"train/{task.training}", "val/loss", f"val/{task.headline}")
    return "  ".join(f"{name} {results[name]:.4f}" for name in names if name in results)


def log_to_files(log: logging.Logger, text: str) -> None:
    """Log `text` to files only: on the terminal it would break the progress bar."""
    record = log.makeRecord(log.name, logging.INFO, "", 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
