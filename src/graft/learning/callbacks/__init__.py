"""What happens around training: averaged weights, progress, checkpoints."""

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    RichProgressBar,
    WeightAveraging,
)
from torch import Tensor

from graft.config.metrics import direction
from graft.config.schema import CallbacksConfig, TrainConfig
from graft.config.targets import TARGET, build
from graft.errors import ConfigError
from graft.learning.checkpoint_writing import BestCheckpoint, LatestCheckpoint, ResumePoint


class AveragedWeights(WeightAveraging):
    """Exponential moving average of weights and buffers (Polyak & Juditsky 1992), validated and saved in their place.

    What is frozen stays as it is to the bit: floats are interpolated (Lightning's EMAWeightAveraging takes
    decay·a + (1 - decay)·a, which is not a), whole numbers such as BatchNorm's counter are copied (torch's own
    average rounds them down a little each step).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=_moving_average(decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # torch reads how often it has averaged in every step: a GPU would have to be waited for
            average: Any = self._average_model
            average.n_averaged = average.n_averaged.cpu()

    def put_into(self, checkpoint: dict[str, Any], learner: pl.LightningModule) -> None:
        """See to it that "state_dict" holds the averages. Lightning leaves callbacks out of checkpoints without an
        optimizer, and those would hold the weights of the last step instead."""
        if "averaging_state" not in checkpoint and self._average_model is not None:
            self.on_save_checkpoint(learner.trainer, learner, checkpoint)
            del checkpoint["averaging_state"], checkpoint["current_model_state"]


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], _: Any) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            torch._foreach_copy_(averaged, current)

    return update


class Bar(RichProgressBar):
    """Lightning's bar with our figures, without its logger's version number."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if "/" in name}


class Lines(Callback):
    """One plain line an epoch, for logs and pipes."""

    def __init__(self, write: Any) -> None:
        self.write = write
        self.started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()  # an epoch that is resumed within has no start of its own

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # without a validation, `results` hears of this epoch only after the callbacks
        figures: dict[str, float] = {**pl_module.results, **pl_module.training_figures()}  # type: ignore[operator, dict-item]
        shown = "  ".join(
            f"{name} {figures[name]:.4f}"
            for name in ("train/loss", "train/acc", "val/loss", "val/acc")
            if name in figures
        )
        seconds = time.perf_counter() - self.started
        self.write(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {shown}  {seconds:.1f} s")


class Pace(Callback):
    """How many images a second the training steps took in, validation left out."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self._begun = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._begun:
            self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch.labels) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._begun:
            self.seconds += time.perf_counter() - self._begun
            self._begun = 0.0

    @property
    def images_per_second(self) -> float | None:
        return round(self.images / self.seconds, 2) if self.seconds else None


class Pruning(Callback):
    """Asks after each epoch but the last whether the run is worth going on, and stops it where not.

    Args:
        metric: what is judged, e.g. "val/acc".
        hopeless: (value, epoch from 0) to the answer; asked by the first process only.
    """

    def __init__(self, metric: str, hopeless: Callable[[float, int], bool]) -> None:
        self.metric, self.hopeless = metric, hopeless
        self.pruned = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures: dict[str, float] = pl_module.results  # type: ignore[assignment]
        epoch, last = trainer.current_epoch, trainer.current_epoch + 1 == trainer.max_epochs
        answer = trainer.is_global_zero and self.hopeless(figures[self.metric], epoch) and not last
        self.pruned = trainer.strategy.broadcast(answer)
        trainer.should_stop = trainer.should_stop or self.pruned


def build_callbacks(config: TrainConfig, folder: Path, log: logging.Logger) -> list[Callback]:
    """The callbacks the configuration asks for; checkpoints go to `folder`/checkpoints.

    `best.ckpt` holds the weights of the best `optimized_metric` (or of the last epoch, with
    callbacks.checkpoint=last) and no optimizer; `last.ckpt` holds all that is needed to go on. What holds the last
    epoch is not written in every one where that would take more than a tenth of the time.
    """
    mode = direction(config.optimized_metric)
    checkpoints: dict[str, Any] = {
        "dirpath": folder / "checkpoints",
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    best: dict[str, Any] = {"filename": "best", "mode": mode, "save_weights_only": True, **checkpoints}
    callbacks: list[Callback] = [
        Pace(),
        BestCheckpoint(monitor=config.optimized_metric, save_on_train_epoch_end=False, **best)
        if config.callbacks.checkpoint == "best"
        else LatestCheckpoint(**best),
        ResumePoint(every=config.callbacks.checkpoint_every_n_steps, **checkpoints),
    ]
    callbacks[:0] = extra_callbacks(config.callbacks)
    if config.callbacks.ema is not None:
        callbacks.insert(0, AveragedWeights(config.callbacks.ema))
    if config.callbacks.early_stopping is not None:
        callbacks.append(
            EarlyStopping(config.optimized_metric, patience=config.callbacks.early_stopping, mode=mode, verbose=False)
        )
    progress = config.callbacks.progress
    if progress == "auto":
        progress = "bar" if sys.stderr.isatty() else "lines"
    if progress == "bar":
        callbacks += [Bar(leave=True), Lines(partial(into_files, log))]
    if progress == "lines":
        callbacks.append(Lines(log.info))
    return callbacks


def extra_callbacks(cfg: CallbacksConfig) -> list[Callback]:
    """The callbacks that the configuration adds by name.

    Raises:
        ConfigError: a target that is no Callback, or refuses its arguments.
    """
    callbacks = []
    for name, node in cfg.parts().items():
        callback = build(f"callbacks.{name}", node)
        if not isinstance(callback, Callback):
            kind = type(callback).__name__
            raise ConfigError(f"callbacks.{name}.{TARGET}={node[TARGET]}: gives a {kind}, not a Lightning Callback.")
        callbacks.append(callback)
    return callbacks


def into_files(log: logging.Logger, text: str) -> None:
    """Log `text` to files only: on the terminal it would break into the progress bar."""
    record = log.makeRecord(log.name, logging.INFO, "", 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
