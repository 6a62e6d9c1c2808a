"""Refuses configurations of keys that cannot work together, before anything large is imported."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from graft.config import conf_dir
from graft.config.commands import InspectConfig
from graft.config.duration import seconds_of
from graft.config.fields import check_ranges, one_of
from graft.config.metrics import ALWAYS, HIGHER, known_directions
from graft.config.registration import plain, typed
from graft.config.schema import FREEZE_NOTHING, AugmentConfig, DataConfig, TrainConfig
from graft.config.targets import TARGET, short_name
from graft.config.task import MULTI_LABEL
from graft.data.augment import Augment
from graft.data.image_format import ImageFormat
from graft.data.preprocessing import require_size
from graft.errors import ConfigError, nearest
from graft.models.class_names import class_names
from graft.models.configurations import BUNDLED
from graft.models.configured import recipe_of
from graft.models.registry import facts_of, family_of, require_input_size
from graft.system.files import why_unreadable
from graft.system.slurm import slurm_tasks
from graft.tasks.locations import check_locations
from graft.tasks.part_checks import check_parts, check_views

COUNTED_WEIGHTS = ("balanced", "effective_number")
"""Values of loss.class_weights that are computed from the number of training images of each class."""

COUNTED_POSITIVE = ("balanced",)
"""The same of loss.positive_weights."""

QUICKSTART = "graft train experiment=quickstart"


def settle(config: DictConfig | TrainConfig, overrides: Collection[str] = ()) -> TrainConfig:
    """The typed configuration of a run: filled in where one choice decides another, refused where it cannot work.

    Args:
        config: as Hydra composes it; or a typed configuration, which is changed in place.
        overrides: those of the command line, e.g. "strategy=scratch"; empty within a sweep, where a value may be
            meant for some of the jobs only.

    Raises:
        ConfigError: two keys that disagree, an argument that a part does not take, or a value out of its range; names
            them and the way out.
    """
    cfg = config if isinstance(config, TrainConfig) else typed(config, TrainConfig)
    check_ranges(cfg, TrainConfig)
    cfg.model.name = recipe_of(cfg).name  # of a custom network, the last part of its target
    check_views(cfg.views.parts())
    check_augment(cfg)
    _channels(cfg)
    check_parts(cfg)
    _metric_exists(cfg)
    check_loss_weights(cfg)
    _freeze_schedule(cfg)
    _length(cfg)
    _validation(cfg)
    _processes(cfg)
    _weights_and_strategy(cfg, overrides)
    _head(cfg)
    _network_and_input(cfg)
    _cache(cfg)
    check_locations(cfg, {})
    _data_source(cfg)
    return cfg


def check_augment(cfg: TrainConfig | InspectConfig) -> None:
    """Refuse an augmentation that is out of range, or that cannot change images of the run's format.

    Raises:
        ConfigError: names the key.
    """
    Augment.of(plain(cfg.augment))
    image_format = ImageFormat.of(cfg.data)
    if cfg.augment.policy is not None and not image_format.is_rgb:
        raise ConfigError(
            f"augment.policy={cfg.augment.policy} and images of {image_format} disagree: its operations are those of "
            "8-bit RGB.\nUse augment.policy=null; augment.color_jitter changes brightness and contrast of such images."
        )


def _channels(cfg: TrainConfig) -> None:
    """Refuse a mean or std of another number of channels than the images have."""
    channels = ImageFormat.of(cfg.data).channels
    for name in ("mean", "std"):
        values = getattr(cfg.data.preprocess, name)
        if values is not None and len(values) != channels:
            raise ConfigError(
                f"data.preprocess.{name}={values}: must be a list of {channels} numbers, one per channel "
                f"(data.channels={channels})."
            )


def _data_source(cfg: TrainConfig) -> None:
    """Refuse a data set that does not exist, and arguments that it does not take."""
    from graft.data.loading import checked_group_pattern  # imports NumPy
    from graft.data.sources import check_source, checked_name, source_arguments

    cfg.data.name = checked_name(cfg.data.name, cfg.data._target_)
    check_source(cfg.data._target_, source_arguments(cfg.data, DataConfig))
    checked_group_pattern(cfg.data.group_pattern)


def check_loss_weights(cfg: TrainConfig, classes: Sequence[str] | None = None) -> None:
    """Refuse loss.class_weights and loss.positive_weights that are no weights, or of other classes.

    Args:
        cfg: of the run.
        classes: names of the classes; null while they are not known.

    Raises:
        ConfigError: see `check_class_weights`.
    """
    check_class_weights(cfg.loss.class_weights, classes)
    check_class_weights(cfg.loss.positive_weights, classes, "loss.positive_weights", COUNTED_POSITIVE)


def check_class_weights(
    weights: Any,
    classes: Sequence[str] | None = None,
    name: str = "loss.class_weights",
    counted: Sequence[str] = COUNTED_WEIGHTS,
) -> tuple[float, ...] | None:
    """The weight of each of `classes` by the key `name`, where that names them; null where they are counted.

    Args:
        weights: null, one of `counted`, a weight of each class, or weights by class name (of others: 1).
        classes: names of the classes; null while they are not known.
        name: of the key, for messages.
        counted: words for weights that are computed from the number of training images of each class.

    Raises:
        ConfigError: not numbers, or of other classes.
    """
    if weights is None or weights in counted:
        return None
    if isinstance(weights, str):
        one_of(name, weights, counted)
    named = {str(name): weight for name, weight in weights.items()} if isinstance(weights, Mapping) else None
    values = list(weights if named is None else named.values())
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ConfigError(
            f"{name}={weights}: must be {' or '.join(counted)}, a number for each class, or some by name, e.g. "
            f"'{name}={{ants: 2, bees: 1}}'."
        )
    if classes is None:
        return None
    if named is None:
        if len(values) != len(classes):
            raise ConfigError(
                f"{name} has {len(values)} values, but there are {len(classes)} classes: {', '.join(classes)}."
            )
        return tuple(map(float, values))
    for each in named:
        if each not in classes:
            raise ConfigError(f"{name}.{each}: the data set has no such class.{nearest(each, classes)}")
    return tuple(float(named.get(each, 1.0)) for each in classes)


def _metric_exists(config: TrainConfig) -> None:
    """Refuse to choose by a metric that is not measured, has no direction, or is one of the test images."""
    parts = config.metrics.parts()
    directions = known_directions(parts)
    for key, metric, splits in (
        ("optimized_metric", config.optimized_metric, ("val", "test")),
        ("scheduler.monitor", config.scheduler.monitor, ("val",)),
    ):
        if metric is None:
            continue
        name = metric.partition("/")[2]
        always = dict.fromkeys((*ALWAYS, *MULTI_LABEL.measured))  # the data decide which of them there are
        measured = [f"{split}/{each}" for split in splits for each in dict.fromkeys((*always, *parts))]
        options = [each for each in (*parts, name) if (conf_dir() / "metrics" / f"{each}.yaml").is_file()]
        if name in options and name not in (*parts, *always):
            chosen = name if options == [name] else f"[{','.join(options)}]"
            raise ConfigError(
                f"{key}={metric}: not measured.{nearest(metric, measured)}\nTo measure it: metrics={chosen}"
            )
        one_of(key, metric, measured)
        if name in parts and name not in directions:
            raise ConfigError(
                f"{key}={metric}: {parts[name][TARGET]} does not say whether a larger or a smaller value is better.\n"
                f"Set metrics.{name}.{HIGHER}=true or false."
            )
    if config.optimized_metric.startswith("test/") and config.callbacks.checkpoint == "best":
        raise ConfigError(
            f"optimized_metric={config.optimized_metric} and callbacks.checkpoint=best disagree: choosing a checkpoint "
            "by the test set would spoil it.\nUse optimized_metric=val/acc, or callbacks.checkpoint=last."
        )


def _freeze_schedule(config: TrainConfig) -> None:
    schedule = config.freeze.schedule
    epochs = list(schedule.values()) if isinstance(schedule, Mapping) else [schedule]
    if schedule is not None and not all(isinstance(epoch, int) and not isinstance(epoch, bool) for epoch in epochs):
        raise ConfigError(
            f"freeze.schedule={schedule}: must map groups or stages to the epoch from which they train, e.g. "
            "'freeze.schedule={classifier: 1, features: 3}'."
        )


def _length(config: TrainConfig) -> None:
    """Refuse a training without a step or without an end: Lightning would skip it, or never leave it."""
    trainer = config.trainer
    for key in ("max_epochs", "max_steps"):
        limit = getattr(trainer, key)
        if limit == 0 or limit < -1:
            raise ConfigError(f"trainer.{key}={limit}: nothing to train; give at least 1, or -1 for no limit.")
    if trainer.max_epochs == trainer.max_steps == -1:
        raise ConfigError("trainer.max_epochs=-1 and trainer.max_steps=-1: the training would never end; limit one.")
    if trainer.max_time is not None:
        seconds_of("trainer.max_time", str(trainer.max_time))


def _validation(config: TrainConfig) -> None:
    """Refuse a training without validation when something depends on its metrics."""
    if config.trainer.limit_val_batches != 0:
        return
    users = {
        "callbacks.checkpoint=best": config.callbacks.checkpoint == "best",
        f"callbacks.early_stopping={config.callbacks.early_stopping}": config.callbacks.early_stopping is not None,
        f"scheduler.monitor={config.scheduler.monitor}": config.scheduler.monitor is not None,
        f"search.pruner={config.search.pruner}": config.search.pruner != "none",
    }
    waiting = [user for user, waits in users.items() if waits]
    if waiting:
        raise ConfigError(
            f"trainer.limit_val_batches=0 and {' and '.join(waiting)} disagree: without validation there is no "
            f"{config.optimized_metric} to choose by.\nValidate on at least 1 batch, or set "
            "callbacks.checkpoint=last, which keeps the weights of the last epoch."
        )


def _processes(config: TrainConfig) -> None:
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


def _weights_and_strategy(config: TrainConfig, overrides: Collection[str]) -> None:
    weights = config.model.weights
    if config.strategy.l2_sp is not None and (weights is None or not config.strategy.pretrained):
        raise ConfigError(
            f"strategy={config.strategy.name} and strategy.l2_sp={config.strategy.l2_sp:g} disagree: random weights "
            "are no starting point to stay near.\nUse strategy.l2_sp=null, or strategy=finetune."
        )
    if not config.strategy.pretrained:
        if weights is not None and any(word.lstrip("+").startswith("model.weights=") for word in overrides):
            raise ConfigError(
                f"strategy={config.strategy.name} and model.weights={weights} disagree: this strategy starts at "
                "random.\nUse strategy=finetune or strategy=feature_extract, or leave model.weights out."
            )
        config.model.weights = None
        if config.freeze._target_ != FREEZE_NOTHING:
            raise ConfigError(
                f"strategy={config.strategy.name} and freeze={short_name(str(config.freeze._target_))} disagree: "
                "frozen layers would stay random.\nUse freeze=none, or strategy=feature_extract."
            )
    elif weights is None:
        raise ConfigError(
            f"strategy={config.strategy.name} and model={config.model.name} with model.weights=null disagree: this "
            "strategy starts from pretrained weights.\nUse strategy=scratch to train from random weights, or give "
            "model.weights=default or model.weights=FILE."
        )
    elif not _is_name(weights) and not _like_hub(weights) and (reason := why_unreadable(Path(weights).expanduser())):
        raise ConfigError(
            f"model.weights={weights}: {reason}.\n"
            "Give a .pth, .safetensors or .ckpt file, `default` (the library's own weights), `bundled`, hf://ORG/NAME, "
            "or null."
        )
    elif weights == "bundled" and config.model.name not in bundled_models():
        raise ConfigError(
            f"model={config.model.name} and model.weights=bundled disagree: only {' '.join(bundled_models())} "
            "comes with bundled weights.\nUse model=vgg_mini, or model.weights=default."
        )
    elif weights == "default" and not family_of(recipe_of(config)).has_default_weights(recipe_of(config)):
        raise ConfigError(
            f"model={config.model.name} and model.weights=default disagree: torchvision has no weights for it."
            "\nUse strategy=scratch"
            + (", or model.weights=bundled." if config.model.name in bundled_models() else ", or model.weights=FILE.")
        )


def _head(config: TrainConfig) -> None:
    """Refuse keys of the head that contradict each other or the weights; class names in a file become a list."""
    model, strategy = config.model, config.strategy.name
    names = class_names(model.classes)
    model.classes = None if names is None else list(names)
    if model.keep_head and model.head_from is not None:
        raise ConfigError(
            "model.keep_head=true and model.head_from disagree: the first takes over the whole head, the second its "
            "rows by name.\nGive one of them."
        )
    for key, value in (("keep_head=true", model.keep_head), ("classes", model.classes)):
        if value and model.weights is None:
            raise ConfigError(
                f"strategy={strategy} and model.{key} disagree: random weights have no head to keep and no classes.\n"
                f"Leave model.{key} out, or use strategy=finetune."
            )
    _head_from(config)


def _head_from(config: TrainConfig) -> None:
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


def _like_hub(weights: str) -> bool:
    """Whether weights are on the Hugging Face hub, or in a folder with the files of a repository."""
    return weights.startswith("hf://") or (Path(weights).expanduser() / "model.safetensors").is_file()


def bundled_models() -> list[str]:
    """Networks whose pretrained weights come with the package."""
    return sorted(file.stem for file in BUNDLED.glob("*.safetensors"))


def _network_and_input(config: TrainConfig) -> None:
    recipe = recipe_of(config)
    facts = facts_of(recipe)
    if config.data.preprocess.input_size is not None:
        size = require_size(config.data.preprocess.input_size, "data.preprocess.input_size")
        require_input_size(recipe, size, "data.preprocess.input_size")
    if config.data.batch_size == 1 and (facts.batch_norm or facts.classifier == "pooled"):
        raise ConfigError(
            f"data.batch_size=1 and model={config.model.name} disagree: BatchNorm has nothing to average over in a "
            "batch of one image.\nGive data.batch_size=2 or more, or a network without BatchNorm."
        )


def _cache(config: TrainConfig) -> None:
    if config.cache.mode == "none" or config.augment == AugmentConfig():
        config.cache.views = None  # has no effect
    if config.cache.views == "all" and config.trainer.max_epochs < 1:
        raise ConfigError(
            f"cache.views=all and trainer.max_epochs={config.trainer.max_epochs} disagree: there is one view for each "
            "epoch.\nGive the number of epochs, or a number of views."
        )
    if config.cache.mode != "features":
        return
    if config.freeze._target_ == FREEZE_NOTHING:
        raise ConfigError(
            "cache=features and freeze=none disagree: every layer trains, so there are no features to keep.\n"
            "Use strategy=feature_extract, or cache=auto."
        )
    if config.loss.teacher is not None:
        raise ConfigError(
            "cache=features and loss.teacher disagree: the teacher needs the images, which the features replace.\n"
            "Use cache=auto, which keeps the features of validation and test images only."
        )
    for key in ("mixup", "cutmix"):
        if alpha := getattr(config.augment, key):
            raise ConfigError(
                f"cache=features and augment.{key}={alpha:g} disagree: images are mixed again for each "
                f"batch, before the frozen layers see them.\nUse augment.{key}=0, or cache=auto."
            )
