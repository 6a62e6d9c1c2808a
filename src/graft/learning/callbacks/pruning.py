"""Early end of a search's hopeless trials."""

from collections.abc import Callable

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback


class Pruning(Callback):
    """Stops the run after an epoch at which `should_prune` returns true; never after the last one.

    Args:
        metric: the metric that is judged, e.g. "val/acc".
        should_prune: called with (value of the metric, epoch from 0), in the first process only.

    Attributes:
        pruned: whether the run was stopped.
    """

    def __init__(self, metric: str, should_prune: Callable[[float, int], bool]) -> None:
        self.metric, self.should_prune = metric, should_prune
        self.pruned = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures: dict[str, float] = pl_module.results  # type: ignore[assignment]
        epoch, last = trainer.current_epoch, trainer.current_epoch + 1 == trainer.max_epochs
        answer = trainer.is_global_zero and self.should_prune(figures[self.metric], epoch) and not last
        self.pruned = trainer.strategy.broadcast(answer)
        trainer.should_stop = trainer.should_stop or self.pruned
