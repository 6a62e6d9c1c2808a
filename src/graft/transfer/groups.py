"""One learning rate per part of a network (Howard & Ruder 2018, "discriminative fine-tuning")."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from graft.errors import ConfigError, nearest
from graft.transfer.stages import AUXILIARY, CLASSIFIER, FEATURES, HEAD, Stage, stage_by_parameter

COMMON = (FEATURES, CLASSIFIER, HEAD)
NO_DECAY = "/no_decay"


def parameter_groups(
    network: nn.Module,
    stages: Sequence[Stage],
    base_lr: float,
    weight_decay: float = 0.0,
    multipliers: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    decay_norm_and_bias: bool = True,
    without_decay: Collection[str] = (),
) -> list[dict[str, Any]]:
    """All parameters in named groups for an optimizer, frozen or not, so that the structure never changes.

    A multiplier goes by the name of a stage or else of its group. `features`, `classifier` and `head` may be
    given
    for any network: `features` then holds for every group that is neither classifier nor head and has no
    multiplier of its own, so that one default serves all families. What no multiplier names learns at
    `base_lr`. A stage named by a multiplier becomes a separate group.

    With `layer_decay` each stage is a group and learns at base_lr * layer_decay ** (stages between it and the
    head, plus one; the head itself at base_lr); the multipliers are then not used (Clark et al. 2020,
    "ELECTRA").

    Args:
        network: whose parameters.
        stages: `stages_of(network)`.
        base_lr: learning rate of a multiplier 1, above 0.
        weight_decay: of all, or with decay_norm_and_bias=False of weights only: biases and normalisation
            (tensors of one dimension) then are in groups called NAME/no_decay with weight decay 0.
        multipliers: group or stage -> factor, at least 0.
        layer_decay: factor per stage, in (0, 1].
        decay_norm_and_bias: see `weight_decay`.
        without_decay: names of further parameters that belong to the groups NAME/no_decay.

    Returns:
        dicts with "name", "params", "lr" and "weight_decay", from input to output.

    Raises:
        ConfigError: a multiplier for a group no such network has (the groups are listed), or a factor out of
            range.
    """
    multipliers = dict(multipliers or {})
    _check(stages, multipliers, layer_decay)
    stage_of = stage_by_parameter(network, stages)
    groups: dict[str, dict[str, Any]] = {}
    for stage in stages:
        alone = layer_decay is not None or stage.name in multipliers
        lr = base_lr * (
            multiplier_of(stage, multipliers) if layer_decay is None else layer_decay ** _depth(stage, stages)
        )
        for name, parameter in network.named_parameters():
            if stage_of[name] is not stage:
                continue
            spared = name in without_decay or (not decay_norm_and_bias and parameter.ndim <= 1)
            title = (stage.name if alone else stage.group) + (NO_DECAY if spared else "")
            decay = 0.0 if spared else weight_decay
            group = groups.setdefault(title, {"name": title, "params": [], "lr": lr, "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


def multiplier_of(stage: Stage, multipliers: Mapping[str, float]) -> float:
    """The factor for `stage`: its own, its group's, that of `features` for a part of the trunk, or 1."""
    trunk = (FEATURES,) if stage.group not in (CLASSIFIER, HEAD) else ()
    return next((multipliers[name] for name in (stage.name, stage.group, *trunk) if name in multipliers), 1.0)


def _depth(stage: Stage, stages: Sequence[Stage]) -> int:
    """Stages above `stage` on the way to the head; an auxiliary branch is on nobody's way."""
    above = stages[stages.index(stage) + 1 :]
    return sum(other.group != AUXILIARY for other in above)


def _check(stages: Sequence[Stage], multipliers: Mapping[str, float], layer_decay: float | None) -> None:
    groups = list(dict.fromkeys(stage.group for stage in stages))
    names = list(dict.fromkeys([*groups, *(stage.name for stage in stages), *COMMON]))
    for name, factor in multipliers.items():
        if name not in names:
            raise ConfigError(
                f'strategy.lr_multipliers: "{name}" is no group of this network.{nearest(name, names)} '
                f"Its groups are {', '.join(groups)}; its stages {', '.join(stage.name for stage in stages)}."
            )
        if factor < 0:
            raise ConfigError(f"strategy.lr_multipliers.{name}={factor}: must be at least 0.")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ConfigError(f"strategy.layer_decay={layer_decay}: must be more than 0 and at most 1.")
