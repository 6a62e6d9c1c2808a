"""Direction in which a metric improves: the only place that decides it."""

from collections.abc import Mapping
from typing import Any

from graft.config.targets import TARGET, class_constant, short_name
from graft.config.task import SINGLE_LABEL

HIGHER = "higher_is_better"
"""Attribute of a torchmetrics class, and the key of a metric whose class does not have it."""

ALWAYS = SINGLE_LABEL.measured
"""Metrics of every run on one label per image, whose names no other metric may have."""


def direction(metric: str, higher_is_better: Mapping[str, bool]) -> str:
    """ "max" or "min": whether a larger or a smaller value of a metric is better.

    Args:
        metric: its full name, e.g. "val/f1" or "test/acc/roses".
        higher_is_better: of configured metrics, by name, as from `known_directions`; of others, those whose name ends
            in "loss" are to be small, all others large.
    """
    name = metric.split("/")[1] if "/" in metric else metric
    return "max" if higher_is_better.get(name, not name.endswith("loss")) else "min"


def known_directions(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Whether higher is better, for each metric of the group `metrics` that says so.

    Its key `higher_is_better` decides, or else the attribute of this name of its class, read without importing it.

    Args:
        metrics: name -> `_target_` and its arguments.
    """
    stated = {name: _stated(node) for name, node in metrics.items()}
    return {name: higher for name, higher in stated.items() if isinstance(higher, bool)}


def _stated(node: Mapping[str, Any]) -> object:
    if node.get(HIGHER) is not None:
        return node[HIGHER]
    target = str(node.get(TARGET))
    stated = class_constant(target, HIGHER)
    if stated is None and target.startswith("torchmetrics."):  # a wrapper that returns the metric of its `task`
        stated = class_constant(f"torchmetrics.classification.Multiclass{short_name(target)}", HIGHER)
    return stated
