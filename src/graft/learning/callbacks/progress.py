"""Progress of training: a bar for a terminal, and one line per epoch for logs and pipes."""

import logging
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar


class MetricsProgressBar(RichProgressBar):
    """Lightning's progress bar with Graft's metrics, without the logger's version number."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if "/" in name}


class EpochLines(Callback):
    """Writes one line per epoch with its metrics and duration.

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
        figures: dict[str, float] = {**pl_module.results, **pl_module.training_figures()}  # type: ignore[operator, dict-item]
        shown = "  ".join(
            f"{name} {figures[name]:.4f}"
            for name in ("train/loss", "train/acc", "val/loss", "val/acc")
            if name in figures
        )
        seconds = time.perf_counter() - self.started
        self.write(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  {seconds:.1f} s")


def log_to_files(log: logging.Logger, text: str) -> None:
    """Log `text` to files only: on the terminal it would break the progress bar."""
    record = log.makeRecord(log.name, logging.INFO, "", 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
