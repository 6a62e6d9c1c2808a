"""Lookahead: every few steps the weights are set to a running average of themselves (Zhang et al. 2019)."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from graft.errors import TrainingError

DECAY = 0.95
"""Weight of the average at the end of training, per optimizer step between two updates (Jordan 2024)."""


class Lookahead(Callback):
    """Updates a running average of the weights every `every` optimizer steps and after the last, and trains on from it.

    The average includes the floating-point buffers (BatchNorm's statistics). Its weight grows with the cube of the
    progress: while the learning rate is high the weights move almost freely, and the noise of the last steps is
    averaged out. Unlike `callbacks.ema` it changes the weights that are trained.

    A parameter that has never had a gradient, as one of a frozen stage, is left as it is, to the bit.

    Args:
        every: optimizer steps between two updates, at least 1.

    Attributes:
        averages: the average of each parameter that has had a gradient and of each buffer, by name.
    """

    def __init__(self, every: int = 5) -> None:
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.every = every
        self.steps = 0
        self.averages: dict[str, Tensor] = {}
        self._with_gradient: frozenset[str] = frozenset()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the length of the training.

        Raises:
            TrainingError: a resumed run has another length, which the weight of the average depends on.
        """
        steps = int(trainer.estimated_stepping_batches)
        if self.steps not in (0, steps):
            raise TrainingError(
                f"resume: the run has {steps} steps now and had {self.steps}, which Lookahead's average depends on.\n"
                "Resume it with the same number of epochs, processes and images."
            )
        self.steps = steps
        self.averages = {name: average.to(pl_module.device) for name, average in self.averages.items()}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        parameters = _network(pl_module).named_parameters()
        self._with_gradient = frozenset(name for name, parameter in parameters if parameter.grad is not None)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trained, self._with_gradient = self._with_gradient, frozenset()
        step = trainer.global_step
        if not trained or (step % self.every and step != self.steps):  # no gradients: no optimizer step in this batch
            return
        network = _network(pl_module)
        tensors: dict[str, Tensor] = {
            name: parameter for name, parameter in network.named_parameters() if name in trained
        }
        tensors |= {name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()}
        decay = DECAY**self.every * min(1.0, step / self.steps) ** 3
        for name, tensor in tensors.items():
            if name not in self.averages:
                self.averages[name] = tensor.detach().clone()
            tensor.copy_(self.averages[name].lerp_(tensor, 1 - decay))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "averages": {name: average.clone() for name, average in self.averages.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.averages = state_dict["steps"], dict(state_dict["averages"])


def _network(module: pl.LightningModule) -> nn.Module:
    """The network that Graft's LightningModule trains."""
    network = module.network
    assert isinstance(network, nn.Module)
    return network
