"""A time budget: training ends early enough to validate and test, and the schedule reaches its end with it."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import ReduceLROnPlateau

from graft.learning.schedulers import Length

clock = time.monotonic


class TimeBudget(Callback):
    """Ends training within a number of seconds, of which validation and test take their measured share.

    The schedule advances by the larger of two shares: that of the time, and that of the configured length. The learning
    rate so has its last value when the time is over, and that of a run without a budget if the time is ample. Only a
    schedule that follows a metric is left alone.

    Time counts from the first validation or step, over all parts of a resumed run.

    Args:
        seconds: the budget.
        evaluations: duration of the last validation and the test, in durations of a validation.

    Attributes:
        ended: what ended training, for the log; None if the budget did not.
    """

    def __init__(self, seconds: float, evaluations: float) -> None:
        self.seconds, self.evaluations = seconds, evaluations
        self.ended: str | None = None
        self._used_before = 0.0
        self._started: float | None = None
        self._validation_started = self._validation = 0.0
        self._last_step, self._last_elapsed = 0, 0.0

    def state_dict(self) -> dict[str, float]:
        return {"used": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._used_before = state_dict["used"]

    def elapsed(self) -> float:
        """Seconds used so far, including those of the parts before a resume."""
        return self._used_before + (0.0 if self._started is None else clock() - self._started)

    def reserve(self) -> float:
        """Seconds for the last validation and the test, by the longest validation so far."""
        return self._validation * self.evaluations

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()
        self._validation_started = clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = max(self._validation, clock() - self._validation_started)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()
        self._last_step, self._last_elapsed = trainer.global_step, self.elapsed()
        for config in trainer.lr_scheduler_configs:
            if not isinstance(config.scheduler, ReduceLROnPlateau):
                config.frequency = sys.maxsize  # Lightning does not step it; `_advance` does

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:
            return  # within an accumulation window
        elapsed: float = self.elapsed()
        if trainer.world_size > 1:  # all processes stop at the same step
            elapsed = trainer.strategy.broadcast(elapsed)
        longest = max(0.0, elapsed - self._last_elapsed)
        self._last_step, self._last_elapsed = trainer.global_step, elapsed
        available = max(1e-9, self.seconds - self.reserve())
        self._advance(trainer, min(1.0, elapsed / available), trainer.current_epoch)
        if elapsed + longest >= available and not trainer.should_stop:
            trainer.should_stop = True
            self.ended = (
                f"in epoch {trainer.current_epoch + 1}, after step {trainer.global_step}: {elapsed:.1f} s are used, "
                f"{self.reserve():.1f} s reserved for validation and test"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._advance(trainer, 0.0, trainer.current_epoch + 1)

    def _begin(self) -> None:
        if self._started is None:
            self._started = clock()

    def _advance(self, trainer: pl.Trainer, time_share: float, epochs: int) -> None:
        """Step each schedule up to the larger share of its length, see `TimeBudget`.

        Args:
            trainer: of the run.
            time_share: share of the time that is used, in [0, 1].
            epochs: number of completed epochs.
        """
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                continue
            by_step = config.interval == "step"
            total = Length.of(trainer).steps if by_step else max(1, trainer.max_epochs or 1)
            target = min(total, max(trainer.global_step if by_step else epochs, int(time_share * total)))
            while config.scheduler.last_epoch < target:
                config.scheduler.step()
