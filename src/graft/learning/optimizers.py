"""The optimizer over named parameter groups."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from graft.config.schema import OptimizerConfig
from graft.config.targets import accepts, build
from graft.errors import ConfigError


def build_optimizer(groups: Sequence[dict[str, Any]], cfg: OptimizerConfig, *, fused: bool = True) -> Optimizer:
    """The optimizer of `cfg` over `groups`, each with its own "lr" and "weight_decay".

    Args:
        groups: as from `graft.transfer.groups`.
        cfg: the group `optimizer`.
        fused: one kernel for all parameters, on CPU as on CUDA, where the optimizer has one; for fp32 and fp64.

    Raises:
        ConfigError: the target is no optimizer, or refuses its arguments.
    """
    floats = all(p.dtype in (torch.float32, torch.float64) for group in groups for p in group["params"])
    supplied = {"fused": fused and floats} if accepts(str(cfg._target_), "fused") else {}
    arguments = cfg.arguments()
    optimizer = build("optimizer", arguments, groups, **{k: v for k, v in supplied.items() if k not in arguments})
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer._target_={cfg._target_}: gives a {type(optimizer).__name__}, not an Optimizer.")
    return optimizer
