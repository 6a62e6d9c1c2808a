"""Applies the new configuration of a resumed run where Lightning would restore the checkpoint's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from graft.errors import TrainingError
from graft.learning.checkpoints import Progress, progress_of
from graft.learning.schedulers import Length

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Keys of a parameter group that hold a learning rate."""


@dataclass(frozen=True)
class Origin:
    """The run that wrote a checkpoint, as recorded in it.

    Attributes:
        config: its configuration, as plain containers.
        length: of that run; None in checkpoints of earlier versions.
        progress: at the checkpoint.
    """

    config: dict[str, Any]
    length: Length | None
    progress: Progress

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> "Origin":
        length = checkpoint.get("length")
        return cls(checkpoint["graft"]["config"], Length(**length) if length else None, progress_of(checkpoint))


def apply_changes(trainer: pl.Trainer, origin: Origin, config: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
    """Change the restored optimizer, schedules and early stopping to the values of the new configuration.

    Nothing is changed if the configuration is the same, so that the run is bit-identical to an uninterrupted one.
    `graft.config.resuming` decides what may change.

    Args:
        trainer: its state is that of the checkpoint.
        origin: of the checkpoint.
        config: the configuration now, as plain containers.
        groups: the parameter groups as configured now, in the order of the optimizer's.

    Raises:
        TrainingError: the run has another length than the checkpoint's, and something cannot follow that.
    """
    before = origin.config["optimizer"]
    optimizer, length = trainer.optimizers[0], Length.of(trainer)
    _refuse_other_length(trainer, origin, length)
    factor = config["optimizer"]["lr"] / before["lr"]
    if factor != 1:
        _scale_rates(trainer, optimizer, factor)
    if config["optimizer"]["weight_decay"] != before["weight_decay"]:
        for group, configured in zip(optimizer.param_groups, groups, strict=True):
            group["weight_decay"] = configured["weight_decay"]
    if factor != 1 or length != origin.length:
        for schedule in trainer.lr_scheduler_configs:
            if isinstance(schedule.scheduler, LambdaLR):
                _follow(schedule.scheduler, optimizer, origin, length, fixed=config["trainer"]["max_steps"] != -1)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping):
            callback.patience = config["callbacks"]["early_stopping"]


def _refuse_other_length(trainer: pl.Trainer, origin: Origin, length: Length) -> None:
    """Refuse a length that differs although the configurations agree, e.g. through trainer.devices=auto."""
    if origin.length is None or length == origin.length:
        return
    before, epoch = origin.length, origin.progress.epochs + 1
    if length.steps_per_epoch != before.steps_per_epoch and origin.progress.within_epoch:
        raise TrainingError(
            f"resume: an epoch has {length.steps_per_epoch} steps now and had {before.steps_per_epoch}, and the "
            f"checkpoint is from within epoch {epoch}.\nResume it with as many processes and images as before."
        )
    if any(isinstance(each.scheduler, OneCycleLR) for each in trainer.lr_scheduler_configs):
        raise TrainingError(
            f"resume: the run has {length.steps} steps now and had {before.steps}, which scheduler=onecycle depends "
            "on.\nResume it with as many processes and images as before."
        )


def _scale_rates(trainer: pl.Trainer, optimizer: Optimizer, factor: float) -> None:
    """Multiply every learning rate; each schedule is a product with the configured one, so this is exact."""
    for group in optimizer.param_groups:
        for name in RATES:
            if name in group:
                group[name] *= factor
    for schedule in trainer.lr_scheduler_configs:
        for name in ("base_lrs", "_last_lr"):
            rates = getattr(schedule.scheduler, name, None)
            if rates is not None:
                setattr(schedule.scheduler, name, [rate * factor for rate in rates])


def _follow(schedule: LambdaLR, optimizer: Optimizer, origin: Origin, length: Length, *, fixed: bool) -> None:
    """Move a schedule that is a function of the step to its position in a run of this length.

    Args:
        schedule, optimizer: restored.
        origin: of the checkpoint.
        length: of the run now.
        fixed: the number of steps is fixed (trainer.max_steps), regardless of the epochs.
    """
    before = origin.length
    if not fixed and before is not None and length.steps_per_epoch != before.steps_per_epoch:
        schedule.last_epoch = origin.progress.epochs * length.steps_per_epoch  # else it would end too early or too late
    rates = [
        base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
