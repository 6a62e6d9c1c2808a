"""Lookahead: weights that return, every few steps, to a running average of themselves (Zhang et al. 2019)."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from graft.errors import TrainingError

KEPT = 0.95
"""Share of the average that is kept at the end, per step between two returns (Jordan 2024)."""


class Lookahead(Callback):
    """Moves the weights that train, and the floating-point buffers (BatchNorm statistics), to their average, every
    `every` optimizer steps and after the last.

    The share of the average that is kept grows with the cube of the progress: nothing is held back while the learning
    rate is high, and the noise of the last steps is averaged out. Unlike `callbacks.ema` it changes what is trained.

    Args:
        every: optimizer steps between two returns, at least 1.

    Attributes:
        averages: by the name of a parameter that has trained or of a buffer.
    """

    def __init__(self, every: int = 5) -> None:
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.every = every
        self.steps = 0
        self.averages: dict[str, Tensor] = {}
        self._with_gradient: frozenset[str] = frozenset()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raises TrainingError where a resumed run has another length: the course of the average follows from it."""
        steps = int(trainer.estimated_stepping_batches)
        if self.steps not in (0, steps):
            raise TrainingError(
                f"resume: the run has {steps} steps now and had {self.steps}, and Lookahead plans its course "
                "from that.\nResume it with the same number of epochs, processes and images."
            )
        self.steps = steps
        device = pl_module.device
        self.averages = {name: average.to(device) for name, average in self.averages.items()}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        named = pl_module.network.named_parameters()  # type: ignore[union-attr]
        self._with_gradient = frozenset(name for name, weight in named if weight.grad is not None)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if not self._with_gradient or (step % self.every and step != self.steps):
            self._with_gradient = frozenset()
            return
        network: Any = pl_module.network
        moving = {name: weight for name, weight in network.named_parameters() if name in self._with_gradient}
        moving |= {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
        self._with_gradient = frozenset()
        for name, tensor in moving.items():
            if name not in self.averages:
                self.averages[name] = tensor.detach().clone()
        averages, tensors = [self.averages[name] for name in moving], [*moving.values()]
        kept = KEPT**self.every * min(1.0, step / self.steps) ** 3
        torch._foreach_lerp_(averages, tensors, 1 - kept)
        torch._foreach_copy_(tensors, averages)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "averages": {name: average.clone() for name, average in self.averages.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.averages = state_dict["steps"], dict(state_dict["averages"])
