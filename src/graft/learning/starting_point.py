"""L2-SP: weight decay towards the pretrained weights instead of towards 0."""

from collections.abc import Collection

import torch
from torch import Tensor, nn


class StartingPoint:
    """Pulls parameters towards the values that they have now, by a term of their gradient: strength * (w - w0).

    It is the gradient of the penalty strength / 2 * |w - w0|² of Li et al. 2018, "Explicit Inductive Bias for Transfer
    Learning with Convolutional Networks". Frozen parameters have no gradient and are not pulled.

    Args:
        network: at the starting point.
        names: of the parameters to pull.
        strength: at least 0.
    """

    def __init__(self, network: nn.Module, names: Collection[str], strength: float) -> None:
        self.strength = strength
        self._start: list[tuple[nn.Parameter, Tensor]] = [
            (parameter, parameter.detach().clone()) for name, parameter in network.named_parameters() if name in names
        ]

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the pull to the gradients; called once before each optimizer step."""
        for index, (parameter, start) in enumerate(self._start):
            if parameter.grad is None:
                continue
            if start.device != parameter.device:
                start = start.to(parameter.device, non_blocking=True)
                self._start[index] = parameter, start
            parameter.grad.add_(parameter.detach() - start, alpha=self.strength)
