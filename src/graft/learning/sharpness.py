"""Sharpness-aware minimisation: the gradient at the worst weights in a small neighbourhood of the current ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from graft.errors import TrainingError

SMALLEST = 1e-12
"""Added to the norm of the gradient, which may be 0."""

ETA = 0.01
"""Of adaptive neighbourhoods: added to the absolute value of each weight (Kwon et al. 2021)."""


class SharpnessAware:
    """Moves the weights to the highest loss at distance `rho`, to first order, and back after the backward pass.

    Each batch has its own ascent, also within an accumulation window, and each process of several ("m-sharpness" with
    m = data.batch_size, as Foret et al. recommend); it touches no `.grad` and starts no communication between
    processes. Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization".

    Args:
        rho: radius of the neighbourhood, in the Euclidean norm over all trainable weights.
        adaptive: measure each weight's distance relative to its size, so that the neighbourhood does not depend on the
            scale of a layer (Kwon et al. 2021, "ASAM").
    """

    def __init__(self, rho: float, adaptive: bool = False) -> None:
        self.rho, self.adaptive = rho, adaptive
        self._before: list[tuple[Tensor, Tensor]] = []

    def loss_at_highest(
        self, loss: Tensor, network: nn.Module, again: Callable[[], Tensor], scaler: Any | None = None
    ) -> Tensor:
        """The loss of the same batch at the highest point; the weights stay there until `restore`, after its backward.

        Args:
            loss: at the current weights, with its graph.
            network: whose trainable parameters move; `restore` also gives its buffers, such as BatchNorm's statistics,
                the values that the pass for `loss` has given them.
            again: computes the loss once more, with the same random numbers.
            scaler: of the gradients, in fp16.

        Raises:
            TrainingError: the weights of the last call were not restored.
        """
        if self._before:
            raise TrainingError(
                "optimizer.sam_rho: the weights are still those of the ascent.\n"
                "In a training loop of your own, call module.on_after_backward() after loss.backward()."
            )
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        scaled = loss if scaler is None else scaler.scale(loss)  # the direction is the same
        gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
        reached = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        self._before = [(each, each.detach().clone()) for each in (*network.buffers(), *(p for p, _ in reached))]
        with torch.no_grad():
            self._ascend([p for p, _ in reached], [g for _, g in reached])
        torch.clear_autocast_cache()  # it holds low-precision copies of the weights before the ascent
        try:
            return again()
        except BaseException:
            self.restore()
            raise

    def restore(self) -> None:
        """Give weights and buffers the values that they had before the ascent, to the bit."""
        with torch.no_grad():
            for tensor, before in self._before:
                tensor.copy_(before)
        self._before = []

    def _ascend(self, parameters: list[nn.Parameter], gradients: list[Tensor]) -> None:
        sizes = [parameter.abs() + ETA for parameter in parameters] if self.adaptive else None
        if sizes is not None:
            gradients = [gradient * size for gradient, size in zip(gradients, sizes, strict=True)]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each.float()) for each in gradients]))
        factor = self.rho / (norm + SMALLEST)
        finite = norm.isfinite()  # an overflow in fp16: no ascent, and the gradient scaler skips the step
        for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            move = gradient * factor if sizes is None else gradient * sizes[index] * factor
            parameter.add_(torch.where(finite, move, torch.zeros_like(move)))
