"""Checks the arguments of a run's parts against the signatures of their targets."""

from collections.abc import Mapping
from typing import Any

from graft.config.metrics import ALWAYS, HIGHER
from graft.config.schema import DISTILLATION, LossConfig, MetricsConfig, TrainConfig
from graft.config.targets import TARGET, accepts, arguments_of, check_target, has_methods
from graft.errors import ConfigError
from graft.learning.checkpoints import checkpoint_file

SUPPLIED = {
    "optimizer": ("params", "fused"),
    "scheduler": ("optimizer", "length", "mode"),
    "loss": ("weight", "pos_weight", "class_counts"),
    "metrics": ("num_classes", "num_labels", "task"),
    "logger": ("folder", "save_dir", "resume_step"),
}
"""The arguments that Graft supplies to the parts of a group, where they take them."""


WEIGHTS_OF_LOSS = {
    "class_weights": ("weight", "cross_entropy"),
    "positive_weights": ("pos_weight", "binary_cross_entropy"),
}
"""Key of the group loss -> the argument of a loss that it becomes, and an option that takes it."""


def check_parts(cfg: TrainConfig) -> None:
    """Refuse an argument that its part does not take, and one that a part lacks."""
    if cfg.scheduler._target_ is None:
        for name in cfg.scheduler.arguments():
            raise ConfigError(
                f"scheduler.{name}={cfg.scheduler.arguments()[name]}: scheduler=none has no arguments.\n"
                "Choose a schedule, e.g. scheduler=cosine."
            )
    for group, part in (("optimizer", cfg.optimizer), ("scheduler", cfg.scheduler), ("loss", cfg.loss)):
        if part._target_ is not None or group != "scheduler":
            check_target(group, part.arguments(), SUPPLIED[group])
    check_target("freeze", cfg.freeze.arguments(), supplied=("epoch",), positional=2)
    for name, node in cfg.review.figures.parts().items():
        check_target(f"review.figures.{name}", node, supplied=("caption",), positional=2)
    check_metrics(cfg.metrics)
    for group, parts in (("logger", cfg.logger), ("callbacks", cfg.callbacks)):
        for name, node in parts.parts().items():
            check_target(f"{group}.{name}", node, SUPPLIED.get(group, ()))
    optimizer = str(cfg.optimizer._target_)
    if cfg.optimizer.weight_decay and not accepts(optimizer, "weight_decay"):
        raise ConfigError(
            f"optimizer.weight_decay={cfg.optimizer.weight_decay}: {optimizer} has no weight decay.\n"
            "Set optimizer.weight_decay=0."
        )
    _check_schedule_free(cfg)
    check_teacher(cfg)
    if cfg.optimizer.sam_adaptive and cfg.optimizer.sam_rho is None:
        raise ConfigError(
            "optimizer.sam_adaptive=true: nothing to adapt without a radius.\nGive one, e.g. optimizer.sam_rho=1."
        )
    for key, (argument, option) in WEIGHTS_OF_LOSS.items():
        if (weights := getattr(cfg.loss, key)) is not None and not accepts(str(cfg.loss._target_), argument):
            raise ConfigError(
                f"loss.{key}={weights}: {cfg.loss._target_} takes no argument `{argument}`.\n"
                f"Set loss.{key}=null, or choose a loss with {key.replace('_', ' ')}, e.g. loss={option}."
            )
    known = arguments_of(optimizer)
    usual = known.defaults.get("momentum", True) if known else True  # True: another kind of momentum, as in Adam
    if cfg.optimizer.nesterov and not (usual if cfg.optimizer.momentum is None else cfg.optimizer.momentum):
        raise ConfigError(
            f"optimizer.nesterov=true and optimizer.momentum={cfg.optimizer.momentum or 0:g} disagree: Nesterov's step "
            "looks ahead along the momentum.\nGive optimizer.momentum=0.9, or optimizer.nesterov=false."
        )
    for name, value in cfg.trainer.extra().items():
        if name in DECIDED_ELSEWHERE:
            raise ConfigError(f"trainer.{name}={value}: decided by {DECIDED_ELSEWHERE[name]}.")
        check_target("trainer", {TARGET: "lightning.pytorch.Trainer", name: value})


def check_teacher(cfg: TrainConfig) -> None:
    """Refuse a teacher whose checkpoint does not exist, and numbers of distillation that are out of range."""
    loss = cfg.loss
    if loss.teacher is None:
        return
    if not teachers_of(loss):
        raise ConfigError("loss.teacher=[]: give a run's folder, or leave it out.")
    for name in DISTILLATION:
        if getattr(loss, name) is None:
            raise ConfigError(f"loss.teacher={loss.teacher}: needs loss.{name}, too.\nloss=distill sets usual values.")
    if loss.alpha is not None and loss.alpha > 1:
        raise ConfigError(f"loss.alpha={loss.alpha:g}: with a teacher, must be at most 1.")
    for teacher in teachers_of(loss):
        checkpoint_file(teacher, "loss.teacher")


def teachers_of(loss: LossConfig) -> list[str]:
    """The paths of the teachers; empty without one."""
    return [loss.teacher] if isinstance(loss.teacher, str) else [str(each) for each in loss.teacher or ()]


def _check_schedule_free(cfg: TrainConfig) -> None:
    """Refuse a schedule, or a second average, for an optimizer that averages the weights itself."""
    target = str(cfg.optimizer._target_)
    if not has_methods(target, "train", "eval"):
        return
    if cfg.scheduler._target_ is not None:
        raise ConfigError(
            f"optimizer._target_={target} and scheduler._target_={cfg.scheduler._target_} disagree: the optimizer is "
            "schedule-free.\nUse scheduler=none; optimizer.warmup_steps=N is its warm-up."
        )
    if cfg.callbacks.ema is not None:
        raise ConfigError(
            f"optimizer._target_={target} and callbacks.ema={cfg.callbacks.ema} disagree: the optimizer averages the "
            "weights itself.\nUse callbacks.ema=null."
        )


def check_metrics(cfg: MetricsConfig) -> None:
    """Refuse metrics whose name is taken, that cannot be built, or whose direction is not a boolean."""
    for name, node in cfg.arguments().items():
        if name in ALWAYS:
            raise ConfigError(f"metrics.{name}: every run measures val/{name} itself.\nGive the metric another name.")
        if not name.isidentifier():
            raise ConfigError(f"metrics.{name}: the name must consist of letters, digits and underscores.")
        check_target(f"metrics.{name}", node, SUPPLIED["metrics"])
        higher = cfg.parts()[name].get(HIGHER)
        if not (higher is None or isinstance(higher, bool)):
            raise ConfigError(f"metrics.{name}.{HIGHER}={higher}: must be true or false.")


DECIDED_ELSEWHERE = {
    "logger": "the group logger, e.g. logger=[tensorboard,csv]",
    "callbacks": "the group callbacks, e.g. callbacks.swa._target_=…",
    "enable_checkpointing": "callbacks.checkpoint and callbacks.keep",
    "enable_progress_bar": "callbacks.progress",
    "enable_model_summary": "Graft, which logs a table of its own",
    "num_sanity_val_steps": "trainer.baseline",
    "default_root_dir": "hydra.run.dir",
    "plugins": "Graft",
    "use_distributed_sampler": "Graft, whose sampler is distributed",
}
"""Arguments of Lightning's Trainer that are not set in the group trainer -> by what they are decided."""


def check_views(views: Mapping[str, Any]) -> None:
    """Refuse views that cannot be built, and none at all.

    Args:
        views: name -> `_target_` and its arguments.
    """
    if not views:
        raise ConfigError("views={}: must have at least one, e.g. views=[identity,hflip].")
    for name, view in views.items():
        check_target(f"views.{name}", view, supplied=("size",), positional=1)
