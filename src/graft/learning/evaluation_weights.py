"""Weights of evaluation that an optimizer keeps besides those that it trains, as schedule-free optimizers do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class EvaluationWeights:
    """Puts the optimizer's averaged weights into the network for validation and checkpoints, and the others back.

    The trained weights are kept meanwhile, because the optimizer's own way back rounds: so validations and checkpoints
    do not change what is trained. Defazio et al. 2024, "The Road Less Scheduled".

    Args:
        optimizer: with methods `train()` and `eval()`, which replace the weights of its parameters.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer: Any = optimizer
        self._trained: list[tuple[Tensor, Tensor]] | None = None

    @classmethod
    def of(cls, optimizer: Optimizer) -> "EvaluationWeights | None":
        """Those of `optimizer`; None if it has none."""
        switches = all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))
        return cls(optimizer) if switches else None

    @property
    def in_use(self) -> bool:
        """Whether the network has them now."""
        return self._trained is not None

    @torch.no_grad()
    def use(self) -> None:
        """Put them into the network."""
        if self._trained is None:
            parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
            state = self.optimizer.state
            self._trained = [(each, each.detach().clone()) for each in parameters if state.get(each)]
            self.optimizer.eval()

    @torch.no_grad()
    def train(self) -> None:
        """Put the trained weights into the network, to the bit."""
        self.optimizer.train()
        for parameter, trained in self._trained or ():
            parameter.copy_(trained)
        self._trained = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context in which the network has them."""
        self.use()
        try:
            yield
        finally:
            self.train()
