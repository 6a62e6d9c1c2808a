"""An optimizer: Lion, which steps by the sign of a momentum."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms").

    Graft calls an optimizer with parameter groups, each of which has its own "lr" and "weight_decay", and never gives
    it a gradient for a frozen parameter. State belongs into `self.state`, from which checkpoints and exact resume take
    it; a parameter without a gradient must not be touched.

    Args:
        params: parameters, or groups of them.
        lr: step size; the sign makes all steps equally long, so it is 3 to 10 times smaller than Adam's.
        betas: weights of the old momentum in the step and in the new momentum.
        weight_decay: decoupled, as in AdamW.

    Raises:
        ValueError: a learning rate that is not positive, or betas outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        if lr <= 0:
            raise ValueError(f"lr={lr}: must be positive")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: each must be at least 0 and below 1")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; returns the loss of `closure`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            ours, theirs = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum, gradient = state["momentum"], parameter.grad
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(torch.lerp(gradient, momentum, ours).sign_(), alpha=-group["lr"])
                momentum.lerp_(gradient, 1 - theirs)
        return loss
