"""Learning-rate schedules: each a function from the run's length to a torch scheduler, in one table."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR

from graft.errors import ConfigError


@dataclass(frozen=True)
class Length:
    """How long the run is: optimizer steps in all, and in an epoch."""

    steps: int
    steps_per_epoch: int


def cosine_with_warmup(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Factor of the learning rate at optimizer step `step`: up linearly over `warmup` steps, then half a cosine
    from 1 to `floor` at `total` (Loshchilov & Hutter 2017, without restarts)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def _cosine(optimizer: Optimizer, config: Any, length: Length) -> LRScheduler:
    warmup = min(round(config.warmup_epochs * length.steps_per_epoch), length.steps // 2)
    return LambdaLR(
        optimizer,
        lambda step: cosine_with_warmup(step, warmup=warmup, total=length.steps, floor=config.min_lr_ratio),
    )


def _onecycle(optimizer: Optimizer, config: Any, length: Length) -> LRScheduler:
    total = length.steps + 1  # Lightning steps once more than torch allows when an epoch is cut
    no_warmup = float(config.pct_start * total) == 1  # torch would divide by the length of its first phase, 0
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total,
        pct_start=(1 + 1e-9) / total if no_warmup else config.pct_start,
        div_factor=config.div_factor,
        final_div_factor=config.final_div_factor,
        anneal_strategy=config.anneal_strategy,
        cycle_momentum=config.cycle_momentum,
    )


def _step(optimizer: Optimizer, config: Any, length: Length) -> LRScheduler:
    return StepLR(optimizer, step_size=config.step_size, gamma=config.gamma)


def _plateau(optimizer: Optimizer, config: Any, length: Length) -> ReduceLROnPlateau:
    mode: Literal["min", "max"] = "max" if config.monitor.endswith("acc") else "min"
    return ReduceLROnPlateau(optimizer, mode, factor=config.factor, patience=config.patience)


Maker = Callable[[Optimizer, Any, Length], LRScheduler]

# name: (maker, how often it steps)
SCHEDULES: Mapping[str, tuple[Maker, str]] = {
    "step": (_step, "epoch"),
    "cosine": (_cosine, "step"),
    "onecycle": (_onecycle, "step"),
    "plateau": (_plateau, "epoch"),
}


def build_schedule(optimizer: Optimizer, config: Any, length: Length) -> dict[str, Any] | None:
    """Lightning's description of the schedule `config.name`, or None for a constant learning rate.

    Raises:
        ConfigError: an unknown name; lists those there are.
    """
    if config.name == "none":
        return None
    if config.name not in SCHEDULES:
        raise ConfigError(f"scheduler.name={config.name}: unknown. There are: none {' '.join(SCHEDULES)}")
    make, interval = SCHEDULES[config.name]
    schedule: dict[str, Any] = {"scheduler": make(optimizer, config, length), "interval": interval}
    if config.name == "plateau":
        schedule["monitor"] = config.monitor
    return schedule
