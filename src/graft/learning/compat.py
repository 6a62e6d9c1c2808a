"""Private APIs of Lightning, each in one function or class with the reason for its use.

`tests/learning/test_compat.py` fails if a new version changes one of them. Those of other packages are in
`graft.system.compat`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging


class CheckpointCallback(ModelCheckpoint):
    """ModelCheckpoint whose subclasses decide how a checkpoint is written (`write`) and when one is due.

    Lightning 2.6. Its public methods decide and write in one step.
    """

    def write(self, trainer: pl.Trainer, path: str) -> None:
        """Write the checkpoint that is due to `path`; unlike Lightning's method, without offering it to the loggers."""
        trainer.save_checkpoint(path, self.save_weights_only)
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, path

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        self.write(trainer, filepath)

    def postpone(self, trainer: pl.Trainer, path: str) -> dict[str, Any]:
        """The content of the checkpoint that is due, recorded as saved to `path` and not written."""
        content: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
        self._last_global_step_saved, self._last_checkpoint_saved = trainer.global_step, path
        return content

    def save_now(self, trainer: pl.Trainer) -> None:
        """Save a checkpoint at this step, also in the middle of an epoch."""
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    @property
    def last_saved_step(self) -> int:
        """Optimizer step of the last checkpoint; 0 before the first."""
        return self._last_global_step_saved


class OneBasedProgressBar(RichProgressBar):
    """RichProgressBar that counts epochs from 1.

    Lightning 2.6 describes the last of three epochs as "Epoch 2/2"; no argument changes that.
    """

    def _get_train_description(self, current_epoch: int) -> str:
        description = f"Epoch {current_epoch + 1}"
        if self.trainer.max_epochs not in (None, -1):
            description += f"/{self.trainer.max_epochs}"
        return f"{description:{len(self.validation_description)}}"


def validate_at_the_end_too(trainer: pl.Trainer) -> None:
    """Validate at the end of every epoch, and at the last step, so that there is a best checkpoint.

    Lightning 2.6 skips an epoch's end unless trainer.val_check_interval divides its length, and the step at which
    trainer.max_steps ends the training unless an epoch ends there; no argument of Trainer changes that.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    by_interval: Callable[[Any], bool] = loop._should_check_val_fx

    def is_due(fetcher: Any) -> bool:
        ends = loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
        return by_interval(fetcher) or (ends and trainer.enable_validation)

    loop._should_check_val_fx = is_due


def resumable_after_this_step(trainer: pl.Trainer) -> bool:
    """Whether a checkpoint now is resumed at the next batch: after an optimizer step in the middle of an epoch, without
    a validation before the next step.

    Lightning 2.6 has no public form of these questions.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    ends = loop._num_ready_batches_reached() or trainer.global_step == trainer.max_steps
    return not (ends or loop._should_accumulate() or loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def restore_loader_state(trainer: pl.Trainer) -> None:
    """Let the training loader continue at the batch of the restored checkpoint.

    Lightning 2.6 restores it only where the loader is created, which has happened before if its batches were counted.
    """
    trainer.fit_loop._load_combined_loader_states()


def end_restart(trainer: pl.Trainer) -> None:
    """Treat the rest of a resumed epoch like any other.

    Lightning 2.6 sets this flag back at the start of the next epoch only, and until then skips the schedulers that
    monitor a metric.
    """
    trainer.fit_loop._restarting = False


def count_averages_on_cpu(callback: WeightAveraging) -> None:
    """Keep the number of averages on the CPU, where reading it does not wait for the GPU.

    Lightning 2.6 and torch's AveragedModel read it in every step, and WeightAveraging has no public access to the
    averaged model.
    """
    average: Any = callback._average_model
    average.n_averaged = average.n_averaged.cpu()


def has_average(callback: WeightAveraging) -> bool:
    """Whether the averaged model exists: it is created in `setup` of the stage "fit". Lightning 2.6."""
    return callback._average_model is not None
