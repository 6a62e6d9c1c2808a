"""Optimizers by name, over named parameter groups."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from graft.errors import ConfigError

# name: (class, the keys of OptimizerConfig it takes beside lr and weight_decay)
OPTIMIZERS: Mapping[str, tuple[Callable[..., Optimizer], tuple[str, ...]]] = {
    "sgd": (SGD, ("momentum", "nesterov")),
    "adam": (Adam, ("betas", "eps")),
    "adamw": (AdamW, ("betas", "eps")),
}


def build_optimizer(groups: list[dict[str, Any]], config: Any, *, fused: bool = True) -> Optimizer:
    """The optimizer `config.name` over `groups`, each with its own "lr" and "weight_decay".

    Args:
        groups: as from `graft.transfer.groups`.
        config: an OptimizerConfig.
        fused: one kernel for all parameters, on CPU as on CUDA; for fp32 and fp64 parameters.

    Raises:
        ConfigError: an unknown name; lists those there are.
    """
    if config.name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name={config.name}: unknown. There are: {' '.join(OPTIMIZERS)}")
    make, keys = OPTIMIZERS[config.name]
    options = {key: tuple(value) if key == "betas" else value for key in keys if (value := config[key]) is not None}
    floats = all(p.dtype in (torch.float32, torch.float64) for group in groups for p in group["params"])
    return make(groups, lr=config.lr, fused=fused and floats, **options)
