"""Monitors the training loss: NaN and infinite values, and a loss that explodes."""

import logging
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from graft.data.sampler import PADDING
from graft.errors import TrainingError
from graft.system.files import append_json


class Monitored(Protocol):
    """What the monitor needs of the LightningModule in training."""

    @property
    def network(self) -> nn.Module: ...

    @property
    def trainer(self) -> Any: ...

    @property
    def current_epoch(self) -> int: ...

    @property
    def global_step(self) -> int: ...


log = logging.getLogger("graft")

FILE = "nan_batches.jsonl"
"""In the run's folder: epoch, batch, loss and images of each batch whose loss was NaN or infinite, one per line."""

EXPLODED = 10.0
"""A training loss explodes if it exceeds this multiple of the lowest one so far (or of the loss of a random guess, if
that is larger)."""

WAY_OUT = "Lower optimizer.lr, or clip gradients with trainer.gradient_clip_val=1."


class LossMonitor:
    """Checks the loss of every training step before the weights are updated.

    With `skip`, a step whose loss is NaN or infinite in any process changes nothing: no weight, no optimizer state, no
    BatchNorm statistic. Otherwise it ends the run: on a CPU at once; on a GPU when the loss is next logged, because
    reading it in every step would synchronise the device. With fp16, such steps are left to loss scaling.

    Args:
        module: the module in training.
        skip: skip such steps.
        limit: largest number of skipped steps; one more ends the run.

    Attributes:
        skipped: number of skipped steps.
        exploded: the warning that was given when the loss exploded; None if it did not.
    """

    def __init__(self, module: Monitored, *, skip: bool, limit: int) -> None:
        self.module, self.skip, self.limit = module, skip, limit
        self.skipped = 0
        self.exploded: str | None = None
        self._lowest = math.inf
        self._unread: list[tuple[Tensor, Tensor, int]] = []
        self._buffers: list[Tensor] = []

    def before_step(self) -> None:
        """Save the buffers, which a skipped step restores; called before the forward pass."""
        if self.skip:
            self._buffers = [buffer.clone() for buffer in self.module.network.buffers()]

    def skips(self, loss: Tensor, batch: Any, batch_idx: int) -> bool:
        """Whether the step is to be skipped.

        Raises:
            TrainingError: its loss is not finite and skipping is off, or the limit is exceeded.
        """
        module = self.module
        if self.skip:
            if not module.trainer.strategy.reduce((~loss.detach().isfinite()).float(), reduce_op="sum"):
                return False
            for buffer, before in zip(module.network.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
            self._skip(loss, batch, batch_idx)
            return True
        if module.trainer.precision != "16-mixed":
            self._unread.append((loss.detach(), batch.indices, batch_idx))
            if loss.device.type == "cpu":
                self.read()
        return False

    def read(self) -> None:
        """Check the losses since the last call; raises TrainingError for the first that is not finite."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        for finite, (loss, indices, batch_idx) in zip(
            torch.stack([loss for loss, _, _ in unread]).isfinite().tolist(), unread, strict=True
        ):
            if not finite:
                file = self._log_batch(loss, indices, batch_idx)
                raise TrainingError(
                    f"{self._where(loss, batch_idx)}: training diverged.\n"
                    f"The names of the batch's images are in {file}. {WAY_OUT} loss.on_nan=skip skips such steps."
                )

    def check_growth(self, loss: float, guess: float) -> None:
        """Warn, once, if the mean training loss of the last steps has exploded; `guess` is that of a random guess."""
        lowest, self._lowest = self._lowest, min(self._lowest, loss)
        if self.exploded is None and loss > EXPLODED * max(lowest, guess) and lowest < math.inf:
            module = self.module
            self.exploded = (
                f"train/loss rose from {lowest:.3g} to {loss:.3g} by epoch {module.current_epoch + 1}, step "
                f"{module.global_step}: the steps are too large. {WAY_OUT}"
            )
            if module.trainer.is_global_zero:
                log.warning("%s", self.exploded)

    def notes(self) -> list[str]:
        """Notes for the run's summary, one sentence each."""
        steps = "1 step was" if self.skipped == 1 else f"{self.skipped} steps were"
        skipped = f"{steps} skipped, the loss was NaN or infinite (loss.on_nan=skip): see {FILE}"
        return [*([skipped] if self.skipped else []), *([self.exploded] if self.exploded else [])]

    def _skip(self, loss: Tensor, batch: Any, batch_idx: int) -> None:
        self.skipped += 1
        file = self._log_batch(loss.detach(), batch.indices, batch_idx)
        if self.skipped > self.limit:
            raise TrainingError(
                f"{self._where(loss, batch_idx)}: more than loss.nan_limit={self.limit} steps had such a loss.\n"
                f"The names of the images are in {file}. {WAY_OUT}"
            )
        log.warning("%s: skipped (loss.on_nan=skip, %d of %d)", self._where(loss, batch_idx), self.skipped, self.limit)

    def _where(self, loss: Tensor, batch_idx: int) -> str:
        return f"train/loss is {float(loss.detach())} in epoch {self.module.current_epoch + 1}, batch {batch_idx + 1}"

    def _log_batch(self, loss: Tensor, indices: Tensor, batch_idx: int) -> Path:
        trainer: Any = self.module.trainer
        names = trainer.datamodule.splits.train.names
        entry = {
            "epoch": self.module.current_epoch, "batch": batch_idx, "loss": str(float(loss)),
            "images": [names[index] for index in indices.tolist() if index != PADDING],
        }  # fmt: skip
        file = Path(trainer.default_root_dir) / FILE
        append_json(file, entry)
        return file
