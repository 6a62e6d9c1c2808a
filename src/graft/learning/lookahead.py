"""Lookahead: weights that return, every few steps, to a running average of themselves (Zhang et al. 2019)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from graft.system.compat import copy_all_, lerp_all_

KEPT = 0.95
"""Of the average, at the end and for each step between two returns; the rest is the weights' own (Jordan 2024)."""


class Lookahead:
    """Moves the weights that train, and the statistics that BatchNorm has of them, to their average, every `every`
    steps and after the last.

    How much of the average is kept grows with the cube of the progress: nothing is held back while the learning rate is
    high, and the noise of the last steps is averaged out. Unlike `callbacks.ema` it changes what is trained.

    Args:
        network: what is trained; on its device.
        every: optimizer steps between two returns, at least 1.
        steps: of the whole training.
        averages: those of a run that goes on.

    Attributes:
        averages: by the name of a parameter that has trained or of a buffer, for checkpoints.
    """

    def __init__(
        self, network: nn.Module, every: int, steps: int, averages: Mapping[str, Tensor] | None = None
    ) -> None:
        self.network, self.every, self.steps = network, every, steps
        known: dict[str, Tensor] = dict(network.named_parameters()) | dict(network.named_buffers())
        self.averages = {name: average.to(known[name].device) for name, average in (averages or {}).items()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """To be called after optimizer step number `step`, counted from 1, while its gradients are still there."""
        if step % self.every and step != self.steps:
            return
        moving: dict[str, Tensor] = {
            name: weight for name, weight in self.network.named_parameters() if weight.grad is not None
        }
        if not moving:  # a step that was left out
            return
        moving |= {name: buffer for name, buffer in self.network.named_buffers() if buffer.is_floating_point()}
        for name, tensor in moving.items():
            if name not in self.averages:
                self.averages[name] = tensor.detach().clone()
        averages, tensors = [self.averages[name] for name in moving], [*moving.values()]
        kept = KEPT**self.every * min(1.0, step / self.steps) ** 3
        lerp_all_(averages, tensors, 1 - kept)
        copy_all_(tensors, averages)
