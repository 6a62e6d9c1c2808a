"""The first training batch, caught as the network sees it."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from graft.data.datasets import Batch
from graft.learning.learner import Learner

Show = Callable[[Tensor | None, Tensor, list[int]], None]


class FirstBatch(Callback):
    """Hands the first images of a run's first batch to `show(images, targets, indices)`, in the first process.

    The images are augmented and mixed as they are trained on, but not normalised: uint8 [B, 3, S, S] on the CPU;
    None where the batch holds features instead. Targets are class indices [B] or shares of the classes [B, C]. A
    resumed run has shown them already.

    Args:
        count: how many images.
        show: what to do with them.
    """

    def __init__(self, count: int, show: Show) -> None:
        self.count, self.show = count, show

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step or batch_idx or not trainer.is_global_zero:
            return
        images, targets = None, batch.labels
        if isinstance(batch, Batch):
            assert isinstance(pl_module, Learner)
            prepared, targets = pl_module.prepared(batch, batch_idx)
            images = pl_module.normalisation.undone(prepared[: self.count]).cpu()
        self.show(images, targets[: self.count].cpu(), batch.indices[: self.count].tolist())
