"""When numbers go wrong: a loss that is no number any more, and one that grows beyond reason."""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graft.data.sampler import PADDING
from graft.errors import TrainingError
from graft.system.files import append_json

if TYPE_CHECKING:
    from graft.learning.module import Learner

log = logging.getLogger("graft")

FILE = "nan_batches.jsonl"
"""In the run's folder: epoch, step, loss and images of each batch whose loss was NaN or infinite, one a line."""

EXPLODED = 10.0
"""A training loss so many times the least so far, or the loss of a guess where that is more, is beyond reason."""

WAY_OUT = "Lower optimizer.lr, or clip gradients with trainer.gradient_clip_val=1."


class LossWatch:
    """Looks at the loss of every training step, before the weights have it.

    With `skip`, a step whose loss is NaN or infinite in any process changes nothing: no weight, no optimizer state, no
    statistic of a BatchNorm. Else it ends the run: at once on a CPU; on a GPU, which must not be waited for in every
    step, when the loss is next logged. fp16's loss scaling deals with such steps itself.

    Args:
        learner: whose loss.
        skip: leave such steps out.
        limit: with `skip`, the run ends when there are more of them.

    Attributes:
        skipped: how many steps were left out.
        exploded: what to say when the loss grew beyond reason; None where it did not.
    """

    def __init__(self, learner: "Learner", *, skip: bool, limit: int) -> None:
        self.learner, self.skip, self.limit = learner, skip, limit
        self.skipped = 0
        self.exploded: str | None = None
        self._least = math.inf
        self._unread: list[tuple[Tensor, Tensor, int]] = []
        self._buffers: list[Tensor] = []

    def before_step(self) -> None:
        """Called before the network sees a batch."""
        if self.skip:
            self._buffers = [buffer.clone() for buffer in self.learner.network.buffers()]

    def leaves_out(self, loss: Tensor, batch: Any, batch_idx: int) -> bool:
        """Whether the step is to be left out.

        Raises:
            TrainingError: its loss is not finite and may not be left out, or the limit is exceeded.
        """
        learner = self.learner
        if self.skip:
            lost = learner.trainer.strategy.reduce((~loss.detach().isfinite()).float(), reduce_op="sum")
            if not lost:
                return False
            for buffer, before in zip(learner.network.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
            self._leave_out(loss, batch, batch_idx)
            return True
        if learner.trainer.precision != "16-mixed":
            self._unread.append((loss.detach(), batch.indices, batch_idx))
            if loss.device.type == "cpu":
                self.read()
        return False

    def read(self) -> None:
        """Look at the losses since the last time; raises TrainingError for the first that is not finite."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        for finite, (loss, indices, batch_idx) in zip(
            torch.stack([loss for loss, _, _ in unread]).isfinite().tolist(), unread, strict=True
        ):
            if not finite:
                file = self._write_down(loss, indices, batch_idx)
                raise TrainingError(
                    f"{self._where(loss, batch_idx)}: training diverged.\n"
                    f"The names of the batch's images are in {file}. {WAY_OUT} loss.on_nan=skip leaves such steps out."
                )

    def heed(self, loss: float, classes: int) -> None:
        """Say it, once, when the mean training loss of the last steps is far above what it has been."""
        least, self._least = self._least, min(self._least, loss)
        if self.exploded is None and loss > EXPLODED * max(least, math.log(max(2, classes))) and least < math.inf:
            learner = self.learner
            self.exploded = (
                f"train/loss rose from {least:.3g} to {loss:.3g} by epoch {learner.current_epoch + 1}, step "
                f"{learner.global_step}: the steps are too large. {WAY_OUT}"
            )
            if learner.trainer.is_global_zero:
                log.warning("%s", self.exploded)

    def notes(self) -> list[str]:
        """What a reader of the results ought to know."""
        steps = "1 step was" if self.skipped == 1 else f"{self.skipped} steps were"
        left_out = f"{steps} left out, the loss was NaN or infinite (loss.on_nan=skip): see {FILE}"
        return [*([left_out] if self.skipped else []), *([self.exploded] if self.exploded else [])]

    def _leave_out(self, loss: Tensor, batch: Any, batch_idx: int) -> None:
        self.skipped += 1
        file = self._write_down(loss.detach(), batch.indices, batch_idx)
        if self.skipped > self.limit:
            raise TrainingError(
                f"{self._where(loss, batch_idx)}: more than loss.nan_limit={self.limit} steps had such a loss.\n"
                f"The names of the images are in {file}. {WAY_OUT}"
            )
        log.warning("%s: left out (loss.on_nan=skip, %d of %d)", self._where(loss, batch_idx), self.skipped, self.limit)

    def _where(self, loss: Tensor, batch_idx: int) -> str:
        return f"train/loss is {float(loss.detach())} in epoch {self.learner.current_epoch + 1}, batch {batch_idx + 1}"

    def _write_down(self, loss: Tensor, indices: Tensor, batch_idx: int) -> Path:
        trainer: Any = self.learner.trainer
        names = trainer.datamodule.splits.train.names
        entry = {
            "epoch": self.learner.current_epoch, "batch": batch_idx, "loss": str(float(loss)),
            "images": [names[index] for index in indices.tolist() if index != PADDING],
        }  # fmt: skip
        file = Path(trainer.default_root_dir) / FILE
        append_json(file, entry)
        return file
