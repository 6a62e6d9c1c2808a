"""A callback: how far each parameter group has moved from its initial weights."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class Drift(Callback):
    """Logs drift/GROUP after each epoch: the relative change ‖w - w₀‖ / ‖w₀‖ of a parameter group.

    Shows whether a fine-tuned backbone stays near its pretrained weights: a frozen group has 0. Any Lightning callback
    can be added. What it remembers between epochs belongs into its `state_dict`, which last.ckpt holds and a resumed
    run loads.

    Args:
        every: number of epochs between two measurements.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1 epoch")
        self.every = every
        self.initial: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.initial:  # a resumed run has loaded them
            self.initial = {name: each.detach().cpu().clone() for name, each in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every or not trainer.is_global_zero:
            return
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        figures = {}
        for group in trainer.optimizers[0].param_groups:
            before = torch.cat([self.initial[names[each]].flatten() for each in group["params"]])
            after = torch.cat([each.detach().cpu().flatten() for each in group["params"]])
            figures[f"drift/{group['name']}"] = float((after - before).norm() / before.norm().clamp_min(1e-12))
        for logger in trainer.loggers:
            logger.log_metrics(figures, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self.initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.initial = state_dict["initial"]
