"""What a configuration must not say: combinations that cannot work, told before anything heavy is loaded."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from graft.config.config_hash import flat, matches
from graft.config.fields import check_bounds
from graft.config.locations import check_locations
from graft.config.recipes import recipe_of
from graft.config.targets import check_target, short_name
from graft.config.training import FREEZE_NOTHING, TrainConfig
from graft.errors import ConfigError, nearest
from graft.models.configurations import BUNDLED
from graft.system.files import why_no_file
from graft.system.slurm import slurm_tasks

QUICKSTART = "graft train experiment=quickstart"


def settle(config: Any, said: Collection[str] = ()) -> Any:
    """Fill in what one choice decides for another (in place) and refuse what cannot work.

    Args:
        config: a TrainConfig.
        said: the overrides of the command line, e.g. "strategy=scratch"; empty within a sweep, where a value may be
            meant for some of the jobs only.

    Raises:
        ConfigError: two keys that disagree, or a value out of its range; names them and the way out.
    """
    check_bounds(config, TrainConfig)
    one_of("optimizer.name", config.optimizer.name, ("sgd", "adam", "adamw"))
    one_of("scheduler.name", config.scheduler.name, ("none", "step", "cosine", "onecycle", "plateau"))
    one_of("scheduler.anneal_strategy", config.scheduler.anneal_strategy, ("cos", "linear"))
    one_of("callbacks.checkpoint", config.callbacks.checkpoint, ("best", "last"))
    one_of("callbacks.keep", config.callbacks.keep, ("all", "best", "none"))
    one_of("callbacks.progress", config.callbacks.progress, ("auto", "bar", "lines", "none"))
    one_of("cache.mode", config.cache.mode, ("auto", "features", "none"))
    one_of("data.on_error", config.data.on_error, ("raise", "skip"))
    one_of("loss.on_nan", config.loss.on_nan, ("raise", "skip"))
    one_of("trainer.strategy", config.trainer.strategy, ("auto", "ddp", "ddp_slurm"))
    one_of("scheduler.monitor", config.scheduler.monitor, ("val/loss", "val/acc"))
    one_of("trainer.accelerator", config.trainer.accelerator, ACCELERATORS)
    one_of("trainer.precision", config.trainer.precision, PRECISIONS)
    if config.augment.policy is not None:
        one_of("augment.policy", config.augment.policy, ("trivial", "rand", "auto"))
    if config.data.preprocess.fit is not None:
        one_of("data.preprocess.fit", config.data.preprocess.fit, ("crop", "squash"))
    check_target("freeze", config.freeze, supplied=("epoch",), positional=2)
    check_views(config.views)
    for name, figure in (config.review.figures or {}).items():
        if figure is not None:
            check_target(f"review.figures.{name}", figure, supplied=("caption",), positional=2)
    _metric_exists(config)
    _ranges(config)
    _length(config)
    _validation(config)
    _search(config)
    _processes(config)
    _weights_and_strategy(config, said)
    _head_from(config)
    _network_and_input(config)
    _cache(config)
    check_locations(config, {})
    return config


def check_class_weights(weights: Any, classes: Sequence[str] | None = None) -> tuple[float, ...] | None:
    """The weight of each of `classes` by loss.class_weights, where that names them; null for null and "balanced".

    Args:
        weights: null, "balanced", a weight of each class, or a mapping of classes to weights; others weigh 1.
        classes: names of the classes; null while they are not known.

    Raises:
        ConfigError: not numbers, or of other classes.
    """
    if weights is None or weights == "balanced":
        return None
    named = {str(name): weight for name, weight in weights.items()} if isinstance(weights, Mapping) else None
    values = list(weights if named is None else named.values())
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ConfigError(
            f"loss.class_weights={weights}: wants balanced, a number for each class, or some by name, e.g. "
            "'loss.class_weights={ants: 2, bees: 1}'."
        )
    if classes is None:
        return None
    if named is None:
        if len(values) != len(classes):
            raise ConfigError(
                f"loss.class_weights has {len(values)} values, but there are {len(classes)} classes: "
                f"{', '.join(classes)}."
            )
        return tuple(map(float, values))
    for name in named:
        if name not in classes:
            raise ConfigError(f"loss.class_weights.{name}: the data set has no such class.{nearest(name, classes)}")
    return tuple(float(named.get(name, 1.0)) for name in classes)


def check_views(views: Mapping[str, Any]) -> None:
    """Refuse views that cannot be built, and none at all.

    Args:
        views: name -> `_target_` and its arguments, or null for none.
    """
    if not any(view is not None for view in views.values()):
        raise ConfigError("views={}: must have at least one, e.g. views=[identity,hflip].")
    for name, view in views.items():
        if view is not None:
            check_target(f"views.{name}", view, supplied=("size",), positional=1)


def one_of(key: str, value: str, options: Iterable[str]) -> None:
    """Refuse `value` unless it is one of `options`; names the nearest."""
    options = list(options)
    if value in options:
        return
    hint = nearest(str(value), options, most=1, cutoff=0.4)
    raise ConfigError(f"{key}={value}: unknown.{hint} There are: {' '.join(options)}")


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def _metric_exists(config: Any) -> None:
    one_of("optimized_metric", config.optimized_metric, ("val/acc", "val/loss", "test/acc", "test/loss"))
    if config.optimized_metric.startswith("test/") and config.callbacks.checkpoint == "best":
        raise ConfigError(
            f"optimized_metric={config.optimized_metric} and callbacks.checkpoint=best disagree: choosing a checkpoint "
            "by the test set would spoil it.\nUse optimized_metric=val/acc, or callbacks.checkpoint=last."
        )


PRECISIONS = ("auto", "32", "32-true", "bf16", "bf16-mixed", "bf16-true", "16", "16-mixed", "16-true", "64", "64-true")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def _ranges(config: Any) -> None:
    words = {
        "trainer.deterministic": ("warn",),
        "trainer.compile": COMPILE_MODES,
        "trainer.devices": ("auto",),
        "data.batch_size": ("auto",),
        "data.num_workers": ("auto",),
        "loss.class_weights": ("balanced",),
    }
    for key, options in words.items():  # instead of a number or true
        value = OmegaConf.select(config, key)
        if isinstance(value, str) and not value.isdecimal():
            one_of(key, value, options)
    check_class_weights(config.loss.class_weights)
    if config.optimizer.name == "sgd" and config.optimizer.nesterov and config.optimizer.momentum == 0:
        raise ConfigError(
            "optimizer.nesterov=true and optimizer.momentum=0 disagree: Nesterov's step looks ahead along the momentum."
            "\nGive optimizer.momentum=0.9, or optimizer.nesterov=false."
        )
    schedule = config.freeze.schedule
    epochs = list(schedule.values()) if isinstance(schedule, Mapping) else [schedule]
    if schedule is not None and not all(isinstance(epoch, int) and not isinstance(epoch, bool) for epoch in epochs):
        raise ConfigError(
            f"freeze.schedule={schedule}: must map groups or stages to the epoch from which they train, e.g. "
            "'freeze.schedule={classifier: 1, features: 3}'."
        )


def _length(config: Any) -> None:
    """Refuse a training without a step or without an end: Lightning would skip it, or never leave it."""
    trainer = config.trainer
    for key in ("max_epochs", "max_steps"):
        if trainer[key] == 0 or trainer[key] < -1:
            raise ConfigError(f"trainer.{key}={trainer[key]}: nothing to train; give at least 1, or -1 for no limit.")
    if trainer.max_epochs == trainer.max_steps == -1:
        raise ConfigError("trainer.max_epochs=-1 and trainer.max_steps=-1: the training would never end; limit one.")


def _validation(config: Any) -> None:
    """Refuse a training without validation when something depends on the figures of one."""
    if config.trainer.limit_val_batches != 0:
        return
    users = {
        "callbacks.checkpoint=best": config.callbacks.checkpoint == "best",
        f"callbacks.early_stopping={config.callbacks.early_stopping}": config.callbacks.early_stopping is not None,
        "scheduler=plateau": config.scheduler.name == "plateau" and config.scheduler.monitor.startswith("val/"),
        f"search.pruner={config.search.pruner}": config.search.pruner != "none",
    }
    waiting = [user for user, waits in users.items() if waits]
    if waiting:
        raise ConfigError(
            f"trainer.limit_val_batches=0 and {' and '.join(waiting)} disagree: without validation there is no "
            f"{config.optimized_metric} to choose by.\nValidate on at least 1 batch, or set "
            "callbacks.checkpoint=last, which keeps the weights of the last epoch."
        )


def _processes(config: Any) -> None:
    trainer, tasks = config.trainer, slurm_tasks()
    if trainer.strategy == "ddp_slurm":
        if tasks is None:
            raise ConfigError(
                "trainer=ddp_slurm: there are no tasks of srun here.\nStart it with srun --ntasks-per-node=N python "
                "train.py …, or use trainer=ddp, which starts a process for each GPU of this machine itself."
            )
        if tasks.count % tasks.nodes:
            raise ConfigError(
                f"trainer=ddp_slurm: srun has started {tasks.count} tasks on {tasks.nodes} nodes; every node must have "
                "the same number.\nUse srun --ntasks-per-node=N."
            )
        trainer.num_nodes, trainer.devices = tasks.nodes, tasks.count // tasks.nodes
    elif tasks is not None and tasks.count > 1:
        raise ConfigError(
            f"trainer.strategy={trainer.strategy}: srun has started {tasks.count} tasks, and each would do the whole "
            "run.\nUse trainer=ddp_slurm to share it out, or srun --ntasks=1."
        )
    elif trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={trainer.num_nodes}: several nodes take trainer=ddp_slurm, which counts them itself."
        )


def _search(config: Any) -> None:
    search = config.search
    one_of("search.pruner", search.pruner, ("none", "median", "percentile", "halving", "hyperband"))


def _weights_and_strategy(config: Any, said: Collection[str]) -> None:
    weights = config.model.weights
    if not config.strategy.pretrained:
        if weights is not None and any(word.lstrip("+").startswith("model.weights=") for word in said):
            raise ConfigError(
                f"strategy={config.strategy.name} and model.weights={weights} disagree: this strategy starts at "
                "random.\nUse strategy=finetune or strategy=feature_extract, or leave model.weights out."
            )
        config.model.weights = None
        if config.freeze._target_ != FREEZE_NOTHING:
            raise ConfigError(
                f"strategy={config.strategy.name} and freeze={short_name(config.freeze._target_)} disagree: "
                "frozen layers would stay random.\nUse freeze=none, or strategy=feature_extract."
            )
    elif weights is None:
        raise ConfigError(
            f"strategy={config.strategy.name} and model={config.model.name} with model.weights=null disagree: this "
            "strategy starts from pretrained weights.\nUse strategy=scratch to train from random weights, or give "
            "model.weights=default or model.weights=FILE."
        )
    elif not _is_name(weights) and (reason := why_no_file(Path(weights).expanduser())):
        raise ConfigError(
            f"model.weights={weights}: {reason}.\n"
            "Give a .pth, .safetensors or .ckpt file, `default` (the library's own weights), `bundled`, or null."
        )
    elif weights == "bundled" and config.model.name not in bundled_models():
        raise ConfigError(
            f"model={config.model.name} and model.weights=bundled disagree: only {' '.join(bundled_models())} "
            "comes with bundled weights.\nUse model=vgg_mini, or model.weights=default."
        )
    elif weights == "default" and config.model.family is None and recipe_of(config).torchvision_name() is None:
        raise ConfigError(
            f"model={config.model.name} and model.weights=default disagree: torchvision has no weights for it."
            "\nUse strategy=scratch"
            + (", or model.weights=bundled." if config.model.name in bundled_models() else ", or model.weights=FILE.")
        )


def _head_from(config: Any) -> None:
    origins = config.model.head_from
    if origins is None:
        return
    if not isinstance(origins, Mapping) or not all(
        isinstance(origin, str | int) or (isinstance(origin, Sequence) and origin) for origin in origins.values()
    ):
        raise ConfigError(
            f"model.head_from={origins}: class → class or classes of the weights, as in "
            "'model.head_from={ants: ant, bees: [bee, fly]}'."
        )
    if config.model.weights is None:
        raise ConfigError(
            f"strategy={config.strategy.name} and model.head_from disagree: random weights know no classes.\n"
            "Set model.head_from=null, or use strategy=finetune."
        )


def _is_name(weights: str) -> bool:
    """`default`, `bundled` or one of torchvision's entries such as IMAGENET1K_V2, not a file."""
    return weights in ("default", "bundled") or re.fullmatch(r"[A-Z0-9_]+", weights) is not None


def bundled_models() -> list[str]:
    """Networks whose pretrained weights come with the package."""
    return sorted(file.stem for file in BUNDLED.glob("*.safetensors"))


def _network_and_input(config: Any) -> None:
    recipe = recipe_of(config)
    facts = recipe.facts()
    if config.data.preprocess.input_size is not None:
        recipe.demand_input(config.data.preprocess.input_size, "data.preprocess.input_size")
    if config.data.batch_size == 1 and (facts.batch_norm or facts.classifier == "pooled"):
        raise ConfigError(
            f"data.batch_size=1 and model={config.model.name} disagree: BatchNorm has nothing to average over in a "
            "batch of one image.\nGive data.batch_size=2 or more, or a network without BatchNorm."
        )


def _cache(config: Any) -> None:
    if config.cache.mode != "features":
        return
    if config.freeze._target_ == FREEZE_NOTHING:
        raise ConfigError(
            "cache=features and freeze=none disagree: every layer trains, so there are no features to keep.\n"
            "Use strategy=feature_extract, or cache=auto."
        )
    for key in ("mixup", "cutmix"):
        if config.augment[key]:
            raise ConfigError(
                f"cache=features and augment.{key}={config.augment[key]:g} disagree: images are mixed anew for each "
                f"batch, before the frozen layers see them.\nUse augment.{key}=0, or cache=auto."
            )


# Repetitions of one experiment differ in these (seed, fold), or in nothing that can change a figure.
UNESSENTIAL = (
    "seed",
    "resume",
    "sweep_name",
    "search.",
    "paths.",
    "download.",
    "logger.",
    "review.",
    "callbacks.progress",
    "callbacks.keep",
    "cache.mode",
    "cache.max_gb",
    "data.num_workers",
    "data.timeout",
    "data.fold",
    "data.root",
    "data.download",
    "data.resident_gb",
    "trainer.log_every_n_steps",
)


def choices(config: dict[str, Any], picked: dict[str, str]) -> dict[str, Any]:
    """What a run is told apart by: the options of the groups, then every key that can change its figures.

    Args:
        config: the resolved configuration, as plain containers.
        picked: Hydra's choice of each group, e.g. {"augment": "basic"}.
    """
    named = {group: config[group]["name"] for group in ("model", "data", "strategy", "optimizer", "scheduler")}
    named["freeze"] = short_name(config["freeze"]["_target_"])
    named |= {group: option for group in ("augment", "experiment") if (option := picked.get(group))}
    keys = {key: value for key, value in flat(config) if _essential(key) and not key.endswith((".name", "._target_"))}
    return named | keys


def _essential(key: str) -> bool:
    return not matches(key, UNESSENTIAL)
