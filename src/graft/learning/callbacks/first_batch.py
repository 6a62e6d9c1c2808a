"""Shows the first training batch, as the network gets it."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from graft.data.datamodule import ImageDataModule
from graft.data.feature_batches import FeatureBatch
from graft.learning.module import TransferModule

Show = Callable[[Tensor, Tensor, list[int]], None]


class FirstBatch(Callback):
    """Passes the first images of a run's first batch to `show(images, targets, indices)`, in the first process.

    The images are augmented and mixed, but not normalised: uint8 [B, 3, H, W] on the CPU. For a batch of cached
    features they are the images that the features were computed from. Targets are class indices [B] or shares of the
    classes [B, C]. A resumed run does not show them again.

    Args:
        count: number of images.
        show: called with them.
    """

    def __init__(self, count: int, show: Show) -> None:
        self.count, self.show = count, show

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step or batch_idx or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, TransferModule)
        indices = batch.indices[: self.count].tolist()
        if isinstance(batch, FeatureBatch):
            data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
            self.show(data.training_images(trainer.current_epoch, indices), batch.labels[: self.count].cpu(), indices)
            return
        images, targets = pl_module.prepared(batch, batch_idx)
        shown = pl_module.normalisation.undone(images[: self.count]).cpu()
        self.show(shown, targets[: self.count].cpu(), indices)
