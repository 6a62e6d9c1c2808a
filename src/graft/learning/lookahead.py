"""Lookahead: weights that return, every few steps, to a running average of themselves (Zhang et al. 2019)."""

import torch
from torch.optim import Optimizer

KEPT = 0.95
"""Of the average, at the end and for each step between two returns; the rest is the weights' own (Jordan 2024)."""

AVERAGE = "lookahead"
"""Where a parameter's average is kept, in the optimizer's state: a resumed run goes on with it."""


class Lookahead:
    """Moves the weights that train to their average, every `every` steps and after the last.

    How much of the average is kept grows with the cube of the progress: nothing is held back while the learning rate is
    high, and the noise of the last steps is averaged out. Unlike `callbacks.ema` it changes what is trained.

    Args:
        every: optimizer steps between two returns, at least 1.
        steps: of the whole training.
    """

    def __init__(self, every: int, steps: int) -> None:
        self.every, self.steps = every, steps

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer, step: int) -> None:
        """To be called after optimizer step number `step`, counted from 1, while its gradients are still there."""
        if step % self.every and step != self.steps:
            return
        kept = KEPT**self.every * min(1.0, step / self.steps) ** 3
        # Only what has stepped: to Adam, a state that is not empty is one that it has begun.
        weights = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        for weight in weights:
            if AVERAGE not in optimizer.state[weight]:
                optimizer.state[weight][AVERAGE] = weight.detach().clone()
        averages = [optimizer.state[weight][AVERAGE] for weight in weights]
        torch._foreach_lerp_(averages, weights, 1 - kept)
        torch._foreach_copy_(weights, averages)
