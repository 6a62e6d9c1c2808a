"""Throughput of training in images per second."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Counts the images of training steps and their time; validation is excluded.

    Attributes:
        images: number of images, over all processes.
        seconds: duration of the training steps.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._started:
            self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.labels) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._started:
            self.seconds += time.perf_counter() - self._started
            self._started = 0.0

    @property
    def images_per_second(self) -> float | None:
        """Images per second; None before the first step."""
        return round(self.images / self.seconds, 2) if self.seconds else None
