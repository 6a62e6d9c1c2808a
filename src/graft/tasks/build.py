"""Builds what a run trains from its configuration and data: network, weights, transfer plan, module, loaders."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torchmetrics import Metric

from graft.config.registration import plain
from graft.config.schema import TrainConfig
from graft.config.targets import accepts, has_methods
from graft.config.task import MULTI_LABEL
from graft.data.augment import augment_of
from graft.data.augmenter import CustomTransforms
from graft.data.channel_statistics import MEASURED, with_statistics
from graft.data.datamodule import ImageDataModule
from graft.data.foreign import ForeignDataModule, ModuleSplits
from graft.data.image_format import ImageFormat
from graft.data.labels import cells_of, real
from graft.data.preprocessing import Preprocessing
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.data.unreadable import UnreadableImages
from graft.errors import listed
from graft.learning.checkpoints import checkpoint_file
from graft.learning.distillation import Teacher
from graft.learning.imbalance import balanced_positive_weights, balanced_weights, effective_number_weights
from graft.learning.losses import build_loss, require_label_loss
from graft.learning.metrics import build_metrics, check_metrics
from graft.learning.module import EVALUATED, Objective, TransferModule
from graft.learning.optimizers import build_optimizer
from graft.learning.restore import from_file
from graft.learning.schedulers import Length, build_schedule
from graft.learning.starting_point import StartingPoint
from graft.learning.views import build_views
from graft.models import build_network, fixed_input_size
from graft.models.class_names import class_names
from graft.models.configured import recipe_of
from graft.models.heads import allow_negative_logits
from graft.models.normalise import Normalise
from graft.models.recipe import Recipe
from graft.models.registry import require_input_size
from graft.models.weights import WeightsReport, default_preprocessing, load_weights, sized_by_weights
from graft.seeding import seeded_everywhere
from graft.system.device import compile_mode
from graft.system.files import sha256
from graft.system.progress import progress_bar
from graft.tasks.checks import COUNTED_POSITIVE, COUNTED_WEIGHTS, check_class_weights
from graft.tasks.part_checks import teachers_of
from graft.transfer import TransferPlan, plan_transfer
from graft.transfer.plan import BATCH_NORMS

SAMPLE = 5000
"""Number of training images from which a network computes fixed layers, such as whitening."""


@dataclass(frozen=True)
class Experiment:
    """The module and the data of a run.

    Attributes:
        config: of the run, with a number for data.batch_size.
        module: the network with its plan, loss and optimizer.
        data: the loaders.
        weights: the origin of the network's tensors.
        notes: for the user, before training, one sentence each.
    """

    config: TrainConfig
    module: TransferModule
    data: TrainingData
    weights: WeightsReport
    notes: tuple[str, ...]


def assemble(
    config: TrainConfig, splits: Splits, folder: Path, fingerprint: str | None = None, notes: Sequence[str] = ()
) -> Experiment:
    """Build the experiment of a configuration; the seed determines everything that is random in it.

    Args:
        config: of the run, settled, with a number for data.batch_size.
        splits: the images.
        folder: of the run; the names of unreadable images are written there.
        fingerprint: of the data, for the checkpoints.
        notes: to add to those of the experiment.

    Raises:
        ConfigError, WeightsError: mistakes that show only with the weights or the classes.
    """
    with seeded_everywhere(config.seed, "parts"):
        objective = objective_of(config, splits)
        metrics = build_metrics(config.metrics, len(splits.classes), splits.task)
        notes = [*notes, *notes_on_metrics(config, splits, metrics)]
        views = build_views(config.tta, config.views.parts())
    pl.seed_everything(config.seed, workers=True, verbose=False)
    epochs = None if config.trainer.max_epochs == -1 else config.trainer.max_epochs
    network, recipe, weights = network_with_weights(config, splits, epochs)
    unreadable = UnreadableImages(folder / "unreadable.jsonl") if config.data.on_error == "skip" else None
    preprocessing, measured = resolve_preprocessing(config, weights, splits, unreadable)
    if isinstance(splits, ModuleSplits):
        preprocessing = splits.preprocessing(preprocessing, plain(config.data.preprocess))
    require_input_size(recipe, preprocessing.input_size, "data.preprocess.input_size", fixed_input_size(recipe))
    if config.trainer.channels_last:
        network = network.to(memory_format=torch.channels_last)
    plan = plan_transfer(network, config.strategy, config.freeze, config.optimizer, epochs, weights.loaded)
    if config.trainer.compile:
        network.compile(mode=compile_mode(config.trainer.compile))  # in place: names in a checkpoint stay clean
    data = loaders(config, splits, preprocessing, unreadable, avoid_single=has_batch_norm(network))
    if weights.source == "random" and hasattr(network, "fit_to"):  # what is computed, not learned
        network.fit_to(Normalise(preprocessing)(data.sample(SAMPLE)))  # type: ignore[operator]
    module = TransferModule(
        network,
        plan,
        starting_point=starting_point(config, network, weights),
        teacher=teacher_of(config, splits, preprocessing),
        classes=splits.classes,
        preprocessing=preprocessing,
        objective=objective,
        optimizer=config.optimizer,
        scheduler=config.scheduler,
        seed=config.seed,
        provenance={
            "recipe": recipe.to_dict(),
            "classes": list(splits.classes),
            "preprocessing": preprocessing.to_dict(),
            "config": plain(config),
            "weights": {"source": weights.source, "sha256": weights.sha256},
            "fingerprint": fingerprint,
            "teacher": [sha256(file) for file in teacher_files(config)],
        },
        log_every=config.trainer.log_every_n_steps,
        views=views,
        metrics=metrics,
        mode=None if config.scheduler.monitor is None else config.mode(config.scheduler.monitor),
        task=splits.task,
    )
    notes = (
        *splits.notes, *weights.notes, *measured, *notes_on_random_layers(plan, weights), *notes_on_balance(config),
        *notes_on_averaged_statistics(config, plan), *notes
    )  # fmt: skip
    return Experiment(config, module, data, weights, notes)


def teacher_of(config: TrainConfig, splits: Splits, preprocessing: Preprocessing) -> Teacher | None:
    """The teacher of loss.teacher; None without one.

    Raises:
        ConfigError: it has other classes, or its network is of another package than the run's own.
        TrainingError, RecordError, WeightsError: its checkpoint cannot be read.
    """
    loss = config.loss
    if loss.teacher is None:
        return None
    own = [str(config.model._target_).partition(".")[0]]  # the configuration names it, so it is trusted
    networks = [from_file(file, own) for file in teacher_files(config)]
    temperature, alpha = float(loss.temperature or 1), float(loss.alpha or 0)
    return Teacher(networks, splits.task, splits.classes, preprocessing, temperature, alpha)


def teacher_files(config: TrainConfig) -> list[Path]:
    """The checkpoints of loss.teacher.

    Raises:
        TrainingError: there is no such file.
    """
    return [checkpoint_file(each, "loss.teacher") for each in teachers_of(config.loss)]


def starting_point(config: TrainConfig, network: torch.nn.Module, weights: WeightsReport) -> StartingPoint | None:
    """What strategy.l2_sp pulls the weights towards: those that were loaded; None without it."""
    strategy = config.strategy
    if strategy.l2_sp is None:
        return None
    names = {name for name, each in network.named_parameters() if strategy.decay_norm_and_bias or each.ndim > 1}
    return StartingPoint(network, names.intersection(weights.loaded), strategy.l2_sp)


def network_with_weights(
    config: TrainConfig, splits: Splits, epochs: int | None
) -> tuple[torch.nn.Module, Recipe, WeightsReport]:
    """The network with the weights of the configuration, its recipe, and what was loaded."""
    recipe = sized_by_weights(recipe_of(config), config.model.weights)
    network = build_network(recipe, len(splits.classes))
    if splits.task is MULTI_LABEL:
        allow_negative_logits(network)
    refuse_unbuildable(config, splits, network, epochs)
    weights = load_weights(
        network,
        recipe,
        config.model.weights,
        keep_head=config.model.keep_head,
        classes=splits.classes,
        head_from=config.model.head_from,
        names=class_names(config.model.classes),
        first_conv=config.model.first_conv,
    )
    return network, recipe, weights


def refuse_unbuildable(config: TrainConfig, splits: Splits, network: torch.nn.Module, epochs: int | None) -> None:
    """Build once, and drop, the parts that are built after the weights: weights may be downloaded, which takes long.

    Args:
        config: of the run, settled.
        splits: the data.
        network: without its weights; it is not changed.
        epochs: of the run; None: no limit.

    Raises:
        ConfigError: a transform, the freeze policy, the optimizer or the schedule refuses its arguments.
    """
    with seeded_everywhere(config.seed, "trial"), without_log():
        CustomTransforms(augment_of(config), config.seed)
        plan = plan_transfer(network, config.strategy, config.freeze, config.optimizer, epochs)
        optimizer = build_optimizer(plan.groups, config.optimizer, fused=False)
        per_epoch = max(1, len(splits.train) // (int(config.data.batch_size) * config.trainer.accumulate_grad_batches))
        steps = per_epoch * (epochs or 1) if config.trainer.max_steps == -1 else config.trainer.max_steps
        build_schedule(optimizer, config.scheduler, Length(steps, per_epoch))


@contextmanager
def without_log() -> Iterator[None]:
    """A context without Graft's log: what is built in it is built again later, and logs then."""
    log = logging.getLogger("graft")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def loaders(
    config: TrainConfig,
    splits: Splits,
    preprocessing: Preprocessing,
    unreadable: UnreadableImages | None,
    *,
    avoid_single: bool = False,
) -> TrainingData:
    """The loaders of a TrainConfig; the other arguments are those of `ImageDataModule`."""
    if isinstance(splits, ModuleSplits):
        return ForeignDataModule(
            splits.module,
            splits,
            preprocessing,
            batch_size=int(config.data.batch_size),
            seed=config.seed,
            avoid_single=avoid_single,
        )
    return ImageDataModule(
        splits,
        preprocessing,
        augment_of(config),
        batch_size=int(config.data.batch_size),
        num_workers=config.data.num_workers,
        seed=config.seed,
        resident_gb=config.data.resident_gb,
        avoid_single=avoid_single,
        unreadable=unreadable,
        draft=config.data.draft,
        timeout=config.data.timeout,
        balanced=config.data.sampler == "balanced",
    )


def parameters_of(plan: TransferPlan, epochs: int) -> dict[str, Any]:
    """The number of parameters, "total" and "trainable" in at least one epoch, and the names of the trainable ones."""
    ever = frozenset[str]().union(*(plan.trainable(epoch) for epoch in range(1 if plan.static else max(1, epochs))))
    sizes = {name: parameter.numel() for name, parameter in plan.network.named_parameters()}
    names = [name for name in sizes if name in ever]
    return {"total": sum(sizes.values()), "trainable": sum(sizes[name] for name in names), "names": names}


def resolve_preprocessing(
    config: TrainConfig, weights: WeightsReport, splits: Splits, unreadable: UnreadableImages | None
) -> tuple[Preprocessing, list[str]]:
    """(the preprocessing of the network's weights, changed by data.preprocess, notes).

    Mean and std of images of another format than the weights' are measured on the training images.
    """
    own = weights.preprocessing or default_preprocessing(recipe_of(config), config.model.weights)
    image_format, changes = ImageFormat.of(config.data), plain(config.data.preprocess)
    preprocessing = own.in_format(image_format).changed(changes, "data.preprocess")
    known = preprocessing.image_format == own.image_format or None not in (changes["mean"], changes["std"])
    if known and image_format.max_value is None:
        return preprocessing, []
    with progress_bar("measuring images", min(MEASURED, len(splits.train))) as bar:
        measured, notes = with_statistics(preprocessing, splits.train, unreadable, bar.advance)
    return (preprocessing, notes[1:]) if known else (measured.changed(changes, "data.preprocess"), notes)


def objective_of(config: TrainConfig, splits: Splits) -> Objective:
    """The loss; what it needs to know of the sizes of the classes is counted in the training images."""

    def counts() -> list[int]:
        return splits.train.counts(len(splits.classes))

    class_weights = config.loss.class_weights
    if class_weights == "balanced":
        weights: tuple[float, ...] | None = balanced_weights(counts())
    elif class_weights == "effective_number":
        weights = effective_number_weights(counts(), config.loss.class_weights_beta)
    else:
        weights = check_class_weights(class_weights, splits.classes)
    positive = config.loss.positive_weights
    if positive == "balanced":
        positive_weights: tuple[float, ...] | None = balanced_positive_weights(counts(), len(splits.train))
    else:
        positive_weights = check_class_weights(positive, splits.classes, "loss.positive_weights", COUNTED_POSITIVE)
    loss = build_loss(config.loss, weights, counts, positive_weights)
    if splits.task is MULTI_LABEL:
        require_label_loss(loss, str(config.loss._target_), len(splits.classes))
    return Objective(
        loss=loss,
        target=str(config.loss._target_),
        mixup=config.augment.mixup,
        cutmix=config.augment.cutmix,
        on_nan=config.loss.on_nan,
        nan_limit=config.loss.nan_limit,
        sam_rho=config.optimizer.sam_rho,
        sam_adaptive=config.optimizer.sam_adaptive,
    )


def notes_on_balance(config: TrainConfig) -> list[str]:
    """A note if sampler and loss both make up for the sizes of the classes."""
    loss = config.loss
    corrected = {
        f"loss.class_weights={loss.class_weights}": loss.class_weights in COUNTED_WEIGHTS,
        f"loss._target_={loss._target_}": accepts(str(loss._target_), "class_counts"),
    }
    return [
        f"data.sampler=balanced and {key} both make up for the sizes of the classes, which is usually too much; use one"
        for key, corrects in corrected.items()
        if corrects and config.data.sampler == "balanced"
    ]


def notes_on_averaged_statistics(config: TrainConfig, plan: TransferPlan) -> list[str]:
    """A note if BatchNorm measures its statistics with other weights than those that are validated."""
    if not has_methods(str(config.optimizer._target_), "train", "eval"):
        return []
    frozen = plan.frozen_modules(0)
    norms = [name for name, module in plan.network.named_modules() if isinstance(module, BATCH_NORMS)]
    if all(name in frozen for name in norms):
        return []
    return [
        f"optimizer._target_={config.optimizer._target_} validates averaged weights, and BatchNorm has the statistics "
        "of the trained ones, which costs accuracy. With pretrained weights use strategy.batch_norm_statistics=keep"
    ]


def notes_on_metrics(config: TrainConfig, splits: Splits, metrics: Mapping[str, Metric]) -> list[str]:
    """Notes on metrics that are undefined on a split.

    Raises:
        ConfigError: the run would choose by one of them.
    """
    present = {}
    for split, images in splits.parts().items():
        if split in EVALUATED:
            _, classes = cells_of(images.labels[real(images.labels)])
            present[split] = np.unique(classes).tolist()
    monitored = {"optimized_metric": config.optimized_metric, "scheduler.monitor": config.scheduler.monitor}
    named = {key: metric for key, metric in monitored.items() if metric is not None}
    return check_metrics(metrics, present, len(splits.classes), named, splits.task)


def notes_on_random_layers(plan: TransferPlan, weights: WeightsReport) -> list[str]:
    """A warning if layers are frozen at their random initialisation."""
    names = plan.frozen_but_random(weights)
    if not names:
        return []
    return [
        f"frozen although random: {listed(names, 4)}. No weights were loaded for them and they will never learn; "
        "freeze=features or freeze=none trains them."
    ]


def has_batch_norm(network: torch.nn.Module) -> bool:
    """Whether any layer normalises over the batch."""
    return any(isinstance(module, BATCH_NORMS) for module in network.modules())
