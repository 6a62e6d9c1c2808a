"""Writes checkpoints atomically, within a time budget, and before a run stops."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from graft.errors import TrainingError
from graft.learning.checkpoints import LAST, PREVIOUS
from graft.learning.compat import CheckpointCallback, end_restart, restore_loader_state, resumable_after_this_step
from graft.system.files import remove_unfinished, writing_atomically
from graft.system.signals import STOP


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file next to the old checkpoint and renames it: a kill leaves the old one or the new one.

    The backup last.ckpt is kept as previous.ckpt, in case the last is damaged on disk. Lightning's own writer moves the
    file from the folder for temporary files, which is a copy if that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises TrainingError if the disk is full or read-only; the old checkpoint remains."""
        path = Path(path)
        if path.parent.is_dir():
            remove_unfinished(path)  # no other process writes to the run's folder
        backup = path.with_name(PREVIOUS) if path.name == LAST else None
        try:
            with writing_atomically(path, backup=backup) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch raises its own error while the disk's is the context
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise TrainingError(
                f"{path}: the checkpoint cannot be written ({cause.strerror or cause}).\n"
                "The previous one is intact. Free some space, and resume from it with resume=auto."
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        """Do nothing: each checkpoint replaces the one before it.

        Lightning calls this with paths from the checkpoint that a run resumes from, and would remove any folder.
        """


SAVED_AT = "saved_at"
"""Key in the state of a callback: the optimizer step of its checkpoint."""


class BestCheckpoint(CheckpointCallback):
    """Lightning's ModelCheckpoint, whose state names files relative to `dirpath` and not by absolute paths.

    Lightning drops the best score when the folder's path has changed, and then replaces the best checkpoint by the next
    one, even if that is worse. With relative names a run can be moved, copied, mounted elsewhere or resumed in a new
    folder.

    If writing would take more than SHARE of the time (as with cached features: epochs are shorter than writing the
    frozen layers), the best weights are kept in memory. They are written before last.ckpt, which refers to them, and at
    the end of training, also after an exception.
    """

    SHARE = 0.1
    """Maximum share of the time for writing."""

    PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.saved_at: int | None = None  # the optimizer step
        self._written = self._took = 0.0
        self._kept: tuple[str, dict[str, Any]] | None = None

    @property
    def state_key(self) -> str:
        """Lightning's, which earlier versions of Graft wrote."""
        return super().state_key.replace(BestCheckpoint.__qualname__, ModelCheckpoint.__qualname__)

    def write(self, trainer: pl.Trainer, path: str) -> None:
        self.saved_at = trainer.global_step
        self._kept = None
        if trainer.strategy.broadcast(self._may_write()):
            started = time.monotonic()
            super().write(trainer, path)
            self._written = time.monotonic()
            self._took = self._written - started
        else:
            self._kept = path, _detached(self.postpone(trainer, path), trainer.lightning_module)

    def _may_write(self) -> bool:
        """Whether enough time has passed since the last checkpoint was written."""
        return self.SHARE * (time.monotonic() - self._written) >= self._took

    def write_kept(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint that is kept in memory, if there is one."""
        if self._kept is not None:
            path, checkpoint = self._kept
            self._kept = None
            trainer.strategy.save_checkpoint(checkpoint, path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.write_kept(trainer)
        self.offer(trainer)

    def offer(self, trainer: pl.Trainer) -> None:
        """Offer the checkpoint to the loggers, which upload it with their argument log_model=true."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        self.write_kept(trainer)

    def state_dict(self) -> dict[str, Any]:
        state = self._with_paths(super().state_dict(), lambda path: Path(path).name)
        return state | {"dirpath": "", SAVED_AT: self.saved_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also of a state with absolute paths: every checkpoint of a run is in `dirpath`."""
        folder = Path(str(self.dirpath))
        state = self._with_paths(state_dict, lambda path: str(folder / Path(path).name))
        super().load_state_dict(state | {"dirpath": self.dirpath})
        self.saved_at = state_dict.get(SAVED_AT)

    def _with_paths(self, state: dict[str, Any], changed: Callable[[str], str]) -> dict[str, Any]:
        paths = {name: changed(state[name]) if state[name] else "" for name in self.PATHS}
        return (
            state | paths | {"best_k_models": {changed(path): score for path, score in state["best_k_models"].items()}}
        )


def _detached(checkpoint: dict[str, Any], module: Any) -> dict[str, Any]:
    """`checkpoint` with copies of the weights that training can still change."""
    plan = module.plan
    frozen = {f"network.{name}" for name in plan.frozen(0)} if plan.static else set()
    weights = {name: tensor if name in frozen else tensor.clone() for name, tensor in checkpoint["state_dict"].items()}
    return checkpoint | {"state_dict": weights}


class LatestCheckpoint(BestCheckpoint):
    """Writes the latest weights at the end of an epoch, with at most SHARE of the time, and at the end of training."""

    def __init__(self, **options: Any) -> None:
        super().__init__(save_on_train_epoch_end=True, **options)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.strategy.broadcast(self._is_due(trainer)):
            super().on_train_epoch_end(trainer, pl_module)

    def _may_write(self) -> bool:
        return True  # `_is_due` has decided

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Whether this is the last epoch, or the last writing was long enough ago."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        return last or trainer.should_stop or super()._may_write()


class ResumePoint(LatestCheckpoint):
    """Writes last.ckpt, which a run resumes from: at the ends of epochs, every `every` steps, and before it stops.

    A run that gets a signal (see `signals`) finishes its step, writes last.ckpt and ends. In the last step of an epoch
    and in a validation it finishes the epoch or the validation first, unless that takes too long.

    Args:
        every: interval in optimizer steps; None: only at the ends of epochs.
    """

    SYNC_EVERY = 10
    """Interval, in steps, at which several processes agree whether to stop: all must stop in the same step."""

    def __init__(self, *, every: int | None = None, **options: Any) -> None:
        super().__init__(filename=Path(LAST).stem, **options)
        self.every = every
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        restore_loader_state(trainer)
        if trainer.fit_loop.resumed_on_epoch_end or trainer.fit_loop.restarted_on_epoch_end:
            self._update_plateau(trainer, pl_module)
        STOP.install_handlers()
        STOP.deferred = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        end_restart(trainer)
        if not resumable_after_this_step(trainer):
            return
        if self._stop_requested(trainer):
            self.save_now(trainer)
            raise KeyboardInterrupt
        if self.every and trainer.global_step // self.every > self.last_saved_step // self.every:
            self.save_now(trainer)
        STOP.waiting_for_batch = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        STOP.waiting_for_batch = False

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if STOP.deferred and STOP.overdue and trainer.world_size == 1:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._stop_requested(trainer, now=True):
            raise KeyboardInterrupt

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        STOP.deferred = False
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        STOP.deferred = STOP.waiting_for_batch = False
        super().on_exception(trainer, pl_module, exception)

    def offer(self, trainer: pl.Trainer) -> None:
        """Do nothing: a tracker needs no checkpoint to resume from."""

    def write(self, trainer: pl.Trainer, path: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BestCheckpoint):
                callback.write_kept(trainer)
        super().write(trainer, path)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Also if this process is requested to stop; rank 0 decides for all."""
        return STOP.requested_at is not None or super()._is_due(trainer)

    def _update_plateau(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Step a plateau schedule for the epoch whose end the checkpoint was written at.

        Lightning steps it after the checkpoint is written, and not again when a run resumes from there.
        """
        figures: dict[str, float] = pl_module.results  # type: ignore[assignment]
        for schedule in trainer.lr_scheduler_configs:
            plateau: Any = schedule.scheduler
            if schedule.reduce_on_plateau and schedule.monitor in figures:
                plateau.step(torch.tensor(figures[schedule.monitor]))  # in float32, as it was monitored

    def _stop_requested(self, trainer: pl.Trainer, *, now: bool = False) -> bool:
        requested = STOP.requested_at is not None
        if trainer.world_size == 1:
            return requested
        self._steps += 1
        if self._steps % self.SYNC_EVERY and not now:
            return False
        return trainer.strategy.reduce_boolean_decision(requested, all=False)
