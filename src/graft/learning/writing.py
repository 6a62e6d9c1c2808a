"""Writing checkpoints: whole or not at all, and so that it costs little beside training."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from graft.errors import TrainingError
from graft.files import writing_atomically
from graft.learning.checkpoints import LAST, PREVIOUS


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the old checkpoint and renames, so that a kill at any moment leaves the old one or the new one.

    The last.ckpt before this one stays as previous.ckpt, for the day that a disk spoils the last. Lightning's own
    writer moves the file from the folder for temporary files, which is a copy where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises TrainingError where the disk is full or may not be written; what was there is left as it is."""
        path = Path(path)
        for part in path.parent.glob(f".{path.name}.*.part"):
            part.unlink(missing_ok=True)  # of one that was killed
        former = path.with_name(PREVIOUS) if path.name == LAST else None
        try:
            with writing_atomically(path, former=former) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer fails on its own while the disk's error passes by
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise TrainingError(
                f"{path}: the checkpoint cannot be written ({cause.strerror or cause}).\n"
                "The one before it is as it was. Make room, and go on from it with resume=auto."
            ) from error


class LatestCheckpoint(ModelCheckpoint):
    """Kept up to date at the ends of epochs, but with no more than a tenth of the time, and at the end of training."""

    SHARE = 0.1

    def __init__(self, **options: Any) -> None:
        super().__init__(save_on_train_epoch_end=True, **options)
        self._written = self._took = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.strategy.broadcast(self._is_due(trainer)):
            started = time.monotonic()
            super().on_train_epoch_end(trainer, pl_module)
            self._written = time.monotonic()
            self._took = self._written - started

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Whether this is the last epoch, or the last writing was long enough ago."""
        last = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
        return last or trainer.should_stop or self.SHARE * (time.monotonic() - self._written) >= self._took
