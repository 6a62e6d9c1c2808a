"""Adapts the configuration of a run to the task of its data: one label per image, or several."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graft.config import conf_dir
from graft.config.schema import MetricsConfig, TrainConfig
from graft.config.targets import TARGET, check_target, short_name
from graft.config.task import NOT_DRAWN, SINGLE_LABEL, Task
from graft.errors import ConfigError
from graft.tasks.part_checks import SUPPLIED, check_metrics, check_parts

if TYPE_CHECKING:
    from graft.data.splits import Splits


def follow_task(cfg: TrainConfig, task: Task) -> list[str]:
    """Replace, in place, what the configuration chooses for one label per image by its counterpart in `task`.

    Applied again, it changes nothing.

    Args:
        cfg: of the run, settled.
        task: of its data.

    Returns:
        Notes on what was replaced, one sentence each.

    Raises:
        ConfigError: a key that has no meaning in this task; names it and the way out.
    """
    if task is SINGLE_LABEL:
        _require_measured(cfg, task, "several labels")
        return []
    if cfg.data.sampler == "balanced":
        raise ConfigError(
            "data.sampler=balanced: draws as many images of each class, and these images have several labels.\n"
            "Use data.sampler=shuffle with loss=binary_cross_entropy loss.positive_weights=balanced."
        )
    notes = [*_follow_loss(cfg, task)]
    cfg.metrics, dropped = metrics_of_task(cfg.metrics, task)
    notes += dropped + _follow_monitored(cfg, task)
    _require_measured(cfg, task, "one label")
    for name, node in cfg.review.figures.parts().items():
        if node[TARGET] in NOT_DRAWN:
            setattr(cfg.review.figures, name, None)
        else:
            node[TARGET] = task.counterparts.get(node[TARGET], node[TARGET])
    check_parts(cfg)
    return notes


def adapted(cfg: TrainConfig, splits: "Splits") -> "Splits":
    """`splits` with the notes of `follow_task`, which adapts the configuration to their task."""
    return replace(splits, notes=(*splits.notes, *follow_task(cfg, splits.task)))


def metrics_of_task(metrics: MetricsConfig, task: Task) -> tuple[MetricsConfig, list[str]]:
    """(the metrics with their counterparts in `task`, notes on those that every run measures anyway).

    Raises:
        ConfigError: a metric that has none; names the way out.
    """
    if task is SINGLE_LABEL:
        return metrics, []
    found: dict[str, dict[str, Any]] = {}
    notes = []
    for name, node in metrics.parts().items():
        key = f"metrics.{name}"
        if name in task.measured and (node[TARGET] in task.counterparts or node[TARGET] in task.counterparts.values()):
            notes.append(f"{key}: every run on several labels measures val/{name}, at the thresholds of the labels")
            continue
        if name in task.measured:
            raise ConfigError(
                f"{key}: every run on several labels measures val/{name} itself.\nGive the metric another name."
            )
        found[name] = {**node, TARGET: _counterpart(key, node[TARGET], task)}
        check_target(key, MetricsConfig.of({name: found[name]}).arguments()[name], SUPPLIED["metrics"])
    changed = MetricsConfig.of(found)
    check_metrics(changed)
    return changed, notes


def _counterpart(key: str, target: str, task: Task) -> str:
    """What takes the place of a target in the task; raises ConfigError if nothing does."""
    if target in task.refused:
        raise ConfigError(
            f"{key}.{TARGET}={target}: is of one class per image, and these images have several labels.\n"
            f"{task.refused[target]}"
        )
    return task.counterparts.get(target, target)


def _follow_loss(cfg: TrainConfig, task: Task) -> list[str]:
    before = str(cfg.loss._target_)
    after = cfg.loss._target_ = _counterpart("loss", before, task)
    if after == before:
        return []
    return [f"the images have several labels each, so the loss is {short_name(after)} instead of {short_name(before)}"]


def _follow_monitored(cfg: TrainConfig, task: Task) -> list[str]:
    """The headline metric of the task in place of accuracy."""
    notes = []
    old, new = SINGLE_LABEL.headline, task.headline
    for key, node, name in _monitored(cfg):
        metric = getattr(node, name)
        if metric is not None and metric.partition("/")[2] == old:
            setattr(node, name, f"{metric.partition('/')[0]}/{new}")
            notes.append(f"{key}={getattr(node, name)}: with several labels per image there is no {metric}")
    return notes


def _monitored(cfg: TrainConfig) -> list[tuple[str, Any, str]]:
    """(key, node, field) of each key that names a metric."""
    return [("optimized_metric", cfg, "optimized_metric"), ("scheduler.monitor", cfg.scheduler, "monitor")]


def _require_measured(cfg: TrainConfig, task: Task, others: str) -> None:
    """Refuse to choose by a metric that only runs on the other task measure."""
    parts: Mapping[str, Any] = cfg.metrics.parts()
    for key, node, name in _monitored(cfg):
        metric = getattr(node, name)
        short = None if metric is None else metric.partition("/")[2]
        if short is None or short in (*task.measured, *parts):
            continue
        known = " ".join(f"val/{each}" for each in (*task.measured, *parts))
        option = f"To measure it: metrics={short}. " if (conf_dir() / "metrics" / f"{short}.yaml").is_file() else ""
        raise ConfigError(
            f"{key}={metric}: measured only for images with {others}, or by metrics.\n{option}There are: {known}"
        )
