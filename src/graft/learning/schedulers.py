"""Learning-rate schedules over the length of a run, and the builder of any schedule."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from graft.config.metrics import direction
from graft.config.schema import SchedulerConfig
from graft.config.targets import accepts, build
from graft.errors import ConfigError

_warn = rank_zero_only(logging.getLogger("graft").warning)


@dataclass(frozen=True)
class Length:
    """Number of optimizer steps of a run, and of a whole epoch, which may be longer than the run."""

    steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, trainer: pl.Trainer) -> "Length":
        """The length of the run that `trainer` makes; it loads the training data if that has not happened yet."""
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
        steps, batches = int(trainer.estimated_stepping_batches), trainer.num_training_batches
        if math.isinf(batches):  # the data do not know their number
            return cls(steps, steps)
        return cls(steps, max(1, math.ceil(batches / trainer.accumulate_grad_batches)))


def cosine_with_warmup(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Factor of the learning rate at optimizer step `step`: up linearly over `warmup` steps, then half a cosine
    from 1 to `floor` at `total` (Loshchilov & Hutter 2017, without restarts)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def cosine(optimizer: Optimizer, length: Length, warmup_epochs: float = 0.0, min_lr_ratio: float = 0.0) -> LambdaLR:
    """Linear warm-up, then half a cosine to `min_lr_ratio` of each group's learning rate; stepped after each step.

    Args:
        optimizer: its groups' learning rates are the highest of the schedule.
        length: of the run.
        warmup_epochs: epochs of linear warm-up, at most half of the run; what exceeds that is cut, with a warning.
        min_lr_ratio: share of the learning rate at the end, in [0, 1].
    """
    requested = round(warmup_epochs * length.steps_per_epoch)
    warmup = min(requested, length.steps // 2)
    if warmup < requested:
        _warn(
            "note  scheduler.warmup_epochs=%g: %d steps, more than half of the run's %d; the warm-up takes %d",
            *(warmup_epochs, requested, length.steps, warmup),
        )
    return LambdaLR(
        optimizer, lambda step: cosine_with_warmup(step, warmup=warmup, total=length.steps, floor=min_lr_ratio)
    )


def onecycle(
    optimizer: Optimizer,
    length: Length,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
) -> OneCycleLR:
    """torch's OneCycleLR over the whole run, with each group's own highest learning rate; stepped after each step."""
    total = length.steps + 1  # Lightning steps once more than torch allows when an epoch is cut
    no_warmup = float(pct_start * total) == 1  # torch would divide by the length of its first phase, 0
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        pct_start=(1 + 1e-9) / total if no_warmup else pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        anneal_strategy=anneal_strategy,
        cycle_momentum=cycle_momentum,
    )


def build_schedule(
    optimizer: Optimizer, cfg: SchedulerConfig, length: Length, mode: str | None = None
) -> dict[str, Any] | None:
    """Lightning's description of the schedule of `cfg`; None for a constant learning rate.

    The target is called with the optimizer, and with `length` and `mode` ("min" or "max", by `monitor`) where it takes
    arguments of these names.

    Args:
        optimizer: with the parameter groups.
        cfg: the group `scheduler`.
        length: of the run.
        mode: "max" or "min", the direction in which `scheduler.monitor` improves; None: by its name.

    Raises:
        ConfigError: the target is no schedule, or refuses its arguments.
    """
    if cfg._target_ is None:
        return None
    offered: Mapping[str, Any] = {"length": length}
    if cfg.monitor is not None:
        offered = {**offered, "mode": mode or direction(cfg.monitor, {})}
    arguments = cfg.arguments()
    supplied = {name: value for name, value in offered.items() if name not in arguments and accepts(cfg._target_, name)}
    schedule = build("scheduler", arguments, optimizer, **supplied)
    if not isinstance(schedule, LRScheduler):
        raise ConfigError(f"scheduler._target_={cfg._target_}: gives a {type(schedule).__name__}, not an LRScheduler.")
    described: dict[str, Any] = {"scheduler": schedule, "interval": cfg.interval}
    return described if cfg.monitor is None else described | {"monitor": cfg.monitor}
