"""Statistics of training steps: gradient norms, time, images per second."""

import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class GradientNorms(Callback):
    """Logs "grad_norm/GROUP", the Euclidean norm of each parameter group's gradient before clipping.

    Every `every` optimizer steps, at the step of train/loss_step, over all processes; 0 for a frozen group. Nothing is
    computed in between.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        step = trainer.global_step + 1
        if step % self.every == 0 and trainer.is_global_zero:
            write(trainer, gradient_norms(optimizer, scale_of(trainer, optimizer)), step)


def gradient_norms(optimizer: Optimizer, scale: float = 1.0) -> dict[str, float]:
    """The norm of each group's gradient, divided by `scale`, with one synchronisation of the device."""
    norms: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        nothing = torch.zeros((), device=group["params"][0].device)
        norms[f"grad_norm/{group['name']}"] = get_total_norm(gradients).float() if gradients else nothing
    return dict(zip(norms, (torch.stack([*norms.values()]) / scale).tolist(), strict=True))


def scale_of(trainer: pl.Trainer, optimizer: Optimizer) -> float:
    """The loss scale that the gradients still have: fused optimizers undo that of fp16 within their step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    inside = getattr(optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and inside else 1.0


class StepTime(Callback):
    """Logs "time/step_seconds" and "time/images_per_second" to TensorBoard, over the steps since the last value.

    Validation is excluded. Not in metrics.csv, which is the same for every repetition of a run.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._restart(0)

    def _restart(self, step: int) -> None:
        self._started, self._images, self._step = time.perf_counter(), 0, step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart(trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch.labels) * trainer.world_size
        step = trainer.global_step
        if step % self.every or step == self._step:
            return
        seconds = time.perf_counter() - self._started
        figures = {
            "time/step_seconds": seconds / (step - self._step),
            "time/images_per_second": self._images / seconds,
        }
        write(trainer, figures, step, to=TensorBoardLogger)
        self._restart(step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart(trainer.global_step)


def write(trainer: pl.Trainer, figures: Mapping[str, float], step: int, *, to: type = object) -> None:
    """Log values of one step to the loggers of a class; only the first process writes."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, to):
                logger.log_metrics(dict(figures), step)
