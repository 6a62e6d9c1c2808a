"""The learning-rate range test: the loss of training steps while the learning rate rises (Smith 2017)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from graft.config.commands import SearchedRatesConfig
from graft.learning.loss_monitor import LossMonitor

SMALLEST_FALL = 0.05
"""Smallest fall of the smoothed loss, as a share of it, from which a learning rate is suggested."""


@dataclass(frozen=True)
class Curve:
    """The losses of a range test.

    Attributes:
        rates: the value of optimizer.lr in each step, ascending.
        losses: training loss of each step, before its update.
        smoothed: moving average of the losses.
        diverged: whether it ended because the loss had grown too much.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: bool

    @property
    def halfway(self) -> float | None:
        """The suggestion: where the smoothed loss has made half of its fall to its minimum; None if it does not fall.

        It is robust where the first steps change the loss little: the length of a descent in steps, as in fastai's
        `valley`, is then dominated by a slow drift at learning rates that are far too small.
        """
        lowest = self._lowest
        highest = max(self.smoothed[: lowest + 1], default=0.0)
        if not self.smoothed or highest - self.smoothed[lowest] < SMALLEST_FALL * highest:
            return None
        middle = (highest + self.smoothed[lowest]) / 2
        return self.rates[max(index for index in range(lowest + 1) if self.smoothed[index] >= middle)]

    @property
    def steepest(self) -> float | None:
        """The learning rate at which the smoothed loss falls fastest per factor of the learning rate; None if never."""
        inner = range(1, min(self._lowest, len(self.smoothed) - 2) + 1)
        slopes = {index: self.smoothed[index + 1] - self.smoothed[index - 1] for index in inner}
        best = min(slopes, key=slopes.__getitem__, default=None)
        return self.rates[best] if best is not None and slopes[best] < 0 else None

    @property
    def _lowest(self) -> int:
        """Index of the smallest smoothed loss."""
        return min(range(len(self.smoothed)), key=self.smoothed.__getitem__, default=0)


class LrSweep(Callback):
    """Raises the learning rate from step to step and records the loss; ends the training when it diverges.

    The groups keep their ratios: in each step a group's learning rate is its configured one, times the tried value of
    optimizer.lr, divided by the configured optimizer.lr.

    Args:
        config: the learning rates.
        lr: optimizer.lr.
        advance: called after each step.
    """

    def __init__(self, config: SearchedRatesConfig, lr: float, advance: Callable[[], None]) -> None:
        self.config, self.lr, self.advance = config, lr, advance
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.diverged = False
        self._average = 0.0
        self._initial: list[float] = []

    def rate(self, step: int) -> float:
        """The value of optimizer.lr in a step, counted from 0."""
        low, high = self.config.min_lr, self.config.max_lr
        return low * (high / low) ** (step / (self.config.steps - 1))

    def curve(self) -> Curve:
        """The losses so far."""
        rates = tuple(map(self.rate, range(len(self.losses))))
        return Curve(rates, tuple(self.losses), tuple(self.smoothed), self.diverged)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._initial = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        factor = self.rate(len(self.losses)) / self.lr
        for group, initial in zip(trainer.optimizers[0].param_groups, self._initial, strict=True):
            group["lr"] = initial * factor

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == len(self.losses):
            return  # within an accumulation window
        sums: Tensor = pl_module.window_sums  # type: ignore[assignment]
        total, _, count = sums.tolist()
        sums.zero_()
        self.advance()
        if not self._record(total / count):
            self.diverged = True
            trainer.should_stop = True
            pl_module.epoch_sums.zero_()  # type: ignore[operator]

    def _record(self, loss: float) -> bool:
        """Add the loss of a step; returns whether it still is one to continue with."""
        if not math.isfinite(loss):
            return False
        self.losses.append(loss)
        weight = self.config.smoothing
        self._average = weight * self._average + (1 - weight) * loss
        self.smoothed.append(self._average / (1 - weight ** len(self.losses)))
        return self.smoothed[-1] <= self.config.diverged * min(self.smoothed)


class WithoutMonitor(LossMonitor):
    """Accepts every loss: `LrSweep` itself ends the training where it diverges."""

    def skips(self, loss: Tensor, batch: Any, batch_idx: int) -> bool:
        return False

    def check_growth(self, loss: float, guess: float) -> None:
        """No warning."""
