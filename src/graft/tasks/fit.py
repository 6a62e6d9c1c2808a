"""Train and test a run: the part of `graft train` that imports torch and Lightning."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger

from graft.config.duration import seconds_of
from graft.config.schema import AugmentConfig, TrainConfig
from graft.data.foreign import ModuleSplits
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.data.transforms import black
from graft.data.workers import explaining_worker_failures
from graft.errors import ConfigError
from graft.features.cache import FeatureCache
from graft.learning.callbacks.build import build_callbacks
from graft.learning.callbacks.pruning import Pruning
from graft.learning.callbacks.throughput import Throughput
from graft.learning.callbacks.time_budget import TimeBudget
from graft.learning.checkpoints import BEST, PREVIOUS, read_checkpoint, resume_point
from graft.learning.distributed import launch
from graft.learning.loggers import build_loggers, finishing, log_best, log_choices
from graft.learning.module import EVALUATED, TransferModule, thresholds_in
from graft.learning.pruning import PRUNED
from graft.learning.views import IDENTITY, variants_of, with_margin
from graft.review.evaluation_tables import table_of_test
from graft.review.layers import layer_table, parameter_table
from graft.review.training_review import Review, RunChoices, build_figures
from graft.system.allocator import reuse_freed_memory
from graft.system.device import Device, choose_device, explaining_nondeterminism
from graft.system.gpu_memory import explaining_out_of_memory
from graft.system.terminal import log_table
from graft.tasks.batch_size import resolve_batch_size
from graft.tasks.build import Experiment, assemble, loaders, parameters_of
from graft.tasks.checks import check_loss_weights
from graft.tasks.data import available_data
from graft.tasks.follow_task import adapted
from graft.tasks.resume import Resumption, remove_earlier_attempt
from graft.tasks.run import Run
from graft.tasks.trainer import build_trainer, check_trainer_arguments, silence_lightning
from graft.transfer import TransferPlan

log = logging.getLogger("graft")

T = TypeVar("T", bound=Callback)


@dataclasses.dataclass(frozen=True)
class Training:
    """A run that is ready to train, with everything that its steps need.

    Attributes:
        experiment: configuration, module, data and weights.
        device: where it computes.
        folder: of the run.
        resume: the checkpoint that it resumes from, if any.
        trainer: Lightning's.
        test_data: of the test, which may need a margin around the images.
        review: the figures in TensorBoard.
        cache: features of frozen layers.
        notes: for the summary, one sentence each; the steps append to it.
    """

    experiment: Experiment
    device: Device
    folder: Path
    resume: Path | None
    trainer: pl.Trainer
    test_data: TrainingData
    review: Review
    cache: FeatureCache
    notes: list[str]

    @property
    def best(self) -> Path:
        """The best checkpoint."""
        return self.folder / "checkpoints" / BEST

    @property
    def pruned(self) -> bool:
        """Whether a search has stopped the run early."""
        return any(callback.pruned for callback in self.callbacks(Pruning))

    def callbacks(self, kind: type[T]) -> list[T]:
        """The trainer's callbacks of a class."""
        return [callback for callback in self.trainer.callbacks if isinstance(callback, kind)]  # type: ignore[attr-defined]


def run(
    config: TrainConfig,
    splits: Splits,
    record: Run,
    resumption: Resumption | None = None,
    group: str | None = None,
) -> None:
    """Train and test a run in as many processes as it is configured for; the results go to `record.summary`.

    Args:
        config: of the run, settled.
        splits: the data.
        record: of the run.
        resumption: the checkpoint that it resumes from; None for a new run.
        group: name of the sweep that it is a job of, for trackers.
    """
    device = choose_device(config.trainer)
    refuse_several_processes(config, splits, device)
    start_folder(record, resumption)
    fingerprint = record.summary.get("data", {}).get("fingerprint")
    choices = RunChoices({**record.summary["config"], "seed": config.seed}, record.summary["swept"], fingerprint, group)
    if device.devices > 1 and config.trainer.strategy != "ddp_slurm":
        record.summary |= launch(one_process, device.devices, config, splits, device, choices, record.folder)
    else:
        record.summary |= one_process(config, splits, device, choices, record.folder)
    if resumption is not None:
        record.summary["notes"][:0] = resumption.notes
    (record.folder / "checkpoints" / PREVIOUS).unlink(missing_ok=True)  # last.ckpt is complete


def refuse_several_processes(config: TrainConfig, splits: Splits, device: Device) -> None:
    """Raise ConfigError for a LightningDataModule, or metrics of fewer images than processes."""
    processes = device.devices * config.trainer.num_nodes
    for split in EVALUATED if config.metrics.parts() else ():
        images = len(splits.parts()[split])
        if images < processes:
            raise ConfigError(
                f"metrics: {images} {split} images are too few for {processes} processes, which share them."
                f"\nGive trainer.devices={max(1, images)} or fewer, or metrics=none."
            )
    if isinstance(splits, ModuleSplits) and processes > 1:
        raise ConfigError(
            f"data._target_={splits.target} and trainer.devices={device.devices} disagree: each process "
            "would train on all batches of a LightningDataModule.\nGive trainer.devices=1."
        )


def start_folder(record: Run, resumption: Resumption | None) -> None:
    """Bring the run's folder to the state that the run starts from, and log what a resumed run changes."""
    if resumption is None:
        if record.writes:
            remove_earlier_attempt(record.folder)
        return
    for note in resumption.notes:
        log.warning("note  %s", note)
    for note in resumption.free:
        log.info("%s", note)
    if record.writes:
        resumption.copy_into(record.folder)


def one_process(
    config: TrainConfig, splits: Splits, device: Device, choices: RunChoices, folder: Path
) -> dict[str, Any]:
    """Train and test in this process, which may be one of several of the run.

    Args:
        config: of the run, settled.
        splits: the data.
        device: where to compute.
        choices: that identify the run.
        folder: of the run.

    Returns:
        Keys of the summary: metrics, epochs, parameters, weights, checkpoint, notes, ….
    """
    silence_lightning()
    keep = device.accelerator == "cpu" and config.trainer.keep_memory
    with reuse_freed_memory(keep), explaining_worker_failures():
        return train_and_test(config, splits, device, choices, folder)


def train_and_test(
    config: TrainConfig, splits: Splits, device: Device, choices: RunChoices, folder: Path
) -> dict[str, Any]:
    """Train, test the best checkpoint, and return the keys of the summary; see `one_process` for the arguments."""
    resume = resume_point(config.resume, folder)
    step = None if resume is None else read_checkpoint(resume)["global_step"]
    loggers = build_loggers(config.logger, folder, step, choices.group)  # may refuse, so before any long work
    with finishing(loggers):
        training = prepare_training(config, splits, device, choices, folder, resume, loggers)
        try:
            validate_baseline(training)
            fit(training)
            return conclude(training, run_test(training))
        finally:
            training.review.draw_curves()


def prepare_training(
    config: TrainConfig,
    splits: Splits,
    device: Device,
    choices: RunChoices,
    folder: Path,
    resume: Path | None,
    loggers: Sequence[Logger],
) -> Training:
    """Build everything that a run needs, first what may be refused; see `one_process` for the arguments."""
    callbacks = refusable_callbacks(config, folder)
    experiment = build_experiment(config, splits, device, folder, choices.fingerprint, resume)
    config, module, data, notes = experiment.config, experiment.module, experiment.data, list(experiment.notes)
    test_data = data_for_test(experiment)  # refuses impossible views before training
    review = Review(config, module, data, folder, choices)
    budget = time_budget(experiment, test_data)
    trainer = build_trainer(experiment, device, folder, loggers, [*callbacks, *budget, *review.callbacks()])
    if budget and resume is not None:
        notes.append(
            "trainer.max_time: the schedule follows the clock, so the resumed run differs from an uninterrupted one"
        )
    log_plan(module.plan, config, device)
    for note in notes:
        log.info("note  %s", note)
    review.open(trainer, notes)
    log_choices(loggers, choices.choices, resuming=resume is not None)
    cache = FeatureCache(config, module, data, trainer, begins=load_weights_to_resume(module, resume))
    return Training(experiment, device, folder, resume, trainer, test_data, review, cache, notes)


def refusable_callbacks(config: TrainConfig, folder: Path) -> list[Callback]:
    """The callbacks, built before the weights, which may be downloaded, as an argument may be refused.

    Raises:
        ConfigError: an argument of a callback, of a figure or of Lightning's Trainer.
    """
    check_trainer_arguments(config.trainer)
    build_figures(config.review.figures)
    return build_callbacks(config, folder, log)


def build_experiment(
    config: TrainConfig,
    splits: Splits,
    device: Device,
    folder: Path,
    fingerprint: str | None,
    resume: Path | None = None,
) -> Experiment:
    """Build module and data, with a number for data.batch_size=auto.

    Args:
        config: of the run, settled.
        splits: the data.
        device: where to compute.
        folder: of the run.
        fingerprint: of the data, for the checkpoints.
        resume: the checkpoint that the run resumes from, whose batch size it keeps.
    """
    config, note = resolve_batch_size(config, splits, device, folder, resume)
    return assemble(config, splits, folder, fingerprint, [note] if note else [])


def build(config: TrainConfig, folder: Path) -> tuple[Experiment, pl.Trainer]:
    """The experiment and the Trainer of a run, for a program of the user's own.

    Args:
        config: of the run, settled.
        folder: where the Trainer writes.

    Raises:
        ConfigError: a key whose effect is part of the command `graft train`: resume, several devices, views of
            test-time augmentation that need larger images.
    """
    silence_lightning()
    if config.resume is not None:
        raise ConfigError(
            f"resume={config.resume}: graft.build starts no run.\nGive the checkpoint to the Trainer: "
            "trainer.fit(module, datamodule=data, ckpt_path=FILE, weights_only=True); or use graft.train."
        )
    device = choose_device(config.trainer)
    if device.devices * config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.devices={device.devices}: graft.build returns the objects of one process.\n"
            "Set trainer.devices=1, or use graft.train, which starts the others."
        )
    splits = available_data(config)
    splits = adapted(config, splits)
    check_loss_weights(config, splits.classes)
    callbacks, loggers = refusable_callbacks(config, folder), build_loggers(config.logger, folder)
    experiment = build_experiment(config, splits, device, folder, splits.fingerprint())
    if data_for_test(experiment) is not experiment.data:
        views = ",".join(experiment.module.views)
        raise ConfigError(
            f"tta=true with views=[{views}]: needs larger images for the test than for validation.\n"
            "Use views=[identity,hflip], or graft.train."
        )
    callbacks += time_budget(experiment, experiment.data)
    return experiment, build_trainer(experiment, device, folder, loggers, callbacks)


def time_budget(experiment: Experiment, test_data: TrainingData) -> list[Callback]:
    """The callback of trainer.max_time; none without a budget.

    Args:
        experiment: of the run.
        test_data: of the test, whose duration is estimated by its images and views, from that of the validation.
    """
    trainer, splits = experiment.config.trainer, experiment.data.splits
    if trainer.max_time is None:
        return []
    images = black(test_data.preprocessing, 1)
    views = len(variants_of(images, experiment.module.views, experiment.module.preprocessing.size))
    test = len(splits.test) * views / max(1, len(splits.val)) if trainer.test else 0.0
    return [TimeBudget(seconds_of("trainer.max_time", trainer.max_time), 1 + test)]


def log_plan(plan: TransferPlan, config: TrainConfig, device: Device) -> None:
    """Log which parameters train, and at which learning rates."""
    counts = parameters_of(plan, config.trainer.max_epochs)
    title = f"{counts['trainable']:,} of {counts['total']:,} parameters train"
    log_table(layer_table(plan, f"{title} · {device.accelerator} × {device.devices} · {device.precision}"))
    if config.review.layers == "full":
        log_table(parameter_table(plan, config.trainer.max_epochs))


def validate_baseline(training: Training) -> None:
    """Validate once before the first step (trainer.baseline)."""
    if training.experiment.config.trainer.baseline and training.resume is None:
        module = training.experiment.module
        training.trainer.validate(module, datamodule=training.experiment.data, verbose=False)
        log.info("baseline (step 0)  %s", "  ".join(f"{name} {value:.4f}" for name, value in module.results.items()))


def fit(training: Training) -> None:
    """Train; the warnings of the training are added to the notes."""
    trainer, module, data = training.trainer, training.experiment.module, training.experiment.data
    try:
        with (
            explaining_out_of_memory(trainer, data.batch_size, trainer.accumulate_grad_batches),
            explaining_nondeterminism(),
        ):
            trainer.fit(module, datamodule=data, ckpt_path=training.resume, weights_only=True)
    except Exception:
        training.review.failed()
        raise
    for budget in training.callbacks(TimeBudget):
        if budget.ended:
            note = f"trainer.max_time={training.experiment.config.trainer.max_time} ended training {budget.ended}"
            log.info("note  %s", note)
            training.notes.append(note)
    for callback in training.callbacks(EarlyStopping):
        if callback.stopped_epoch:
            note = (
                f"early stopping after epoch {trainer.current_epoch} of {trainer.max_epochs}: {callback.monitor} has "
                f"not improved in {callback.patience} validations (callbacks.early_stopping)"
            )
            log.info("note  %s", note)
            training.notes.append(note)
    training.notes.extend([*([module.collapsed] if module.collapsed else []), *module.loss_monitor.notes()])
    for note in notes_on_underfitting(training.experiment.config.augment, module.results):
        log.info("note  %s", note)
        training.notes.append(note)


UNDERFITTING = 0.1
"""Training accuracy this far below that of validation is put down to the augmentation."""


def notes_on_underfitting(augment: AugmentConfig, metrics: Mapping[str, float]) -> list[str]:
    """A note if augmented training images are much harder than those of validation; MixUp's labels have no accuracy."""
    trained, validated = metrics.get("train/acc"), metrics.get("val/acc")  # thresholds of several labels differ
    if trained is None or validated is None or augment == AugmentConfig() or augment.mixup or augment.cutmix:
        return []
    if validated - trained <= UNDERFITTING:
        return []
    return [
        f"train/acc {trained:.2f} is far below val/acc {validated:.2f}: the augmented images are harder than they need "
        "to be for this number of epochs. Try augment=light or augment=none, or train longer."
    ]


def run_test(training: Training) -> dict[str, float]:
    """Load the best checkpoint and test it, unless the run is not to be tested; returns its metrics."""
    module = training.experiment.module
    metrics = load_best(module, training.best)
    if training.experiment.config.trainer.test and not training.pruned:
        if module.views == IDENTITY:
            training.cache.provide_test()
        training.trainer.test(module, datamodule=training.test_data, verbose=False)
        metrics |= {name: value for name, value in module.results.items() if name.startswith("test/")}
    return metrics


def data_for_test(experiment: Experiment) -> TrainingData:
    """The data of the test, with the margin that its views need.

    Raises:
        ConfigError: a view needs a margin that the preprocessing does not leave.
    """
    data = experiment.data
    preprocessing = with_margin(data.preprocessing, experiment.module.views)
    if preprocessing == data.preprocessing:
        return data
    return loaders(experiment.config, data.splits, preprocessing, data.unreadable)


def conclude(training: Training, metrics: dict[str, float]) -> dict[str, Any]:
    """Write the review, close what is open, log the result, and return the keys of the summary."""
    training.review.conclude(training.trainer, metrics, read_checkpoint(training.best))
    training.cache.close()
    log_best(training.trainer.loggers, metrics, training.trainer.global_step)
    for logger in training.trainer.loggers:
        logger.finalize("success")
    module = training.experiment.module
    if module.test_counts is not None:
        log_table(table_of_test(module.classes, module.test_counts))
    log.info("%s", "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.count("/") == 1))
    unreadable = training.experiment.data.unreadable
    for note in unreadable.notes() if unreadable else []:
        log.warning("note  %s", note)
        training.notes.append(note)
    return summary_of(training, metrics)


def summary_of(training: Training, metrics: dict[str, float]) -> dict[str, Any]:
    """The keys of the summary that training and test determine."""
    module, data, weights = training.experiment.module, training.experiment.data, training.experiment.weights
    (throughput,) = training.callbacks(Throughput)
    hardware = {"name": device_name(training.trainer.strategy.root_device), "threads": torch.get_num_threads()}
    return {
        **({"status": PRUNED} if training.pruned else {}),
        "metrics": metrics,
        **({"thresholds": dict(zip(module.classes, module.thresholds, strict=True))} if module.thresholds else {}),
        "epochs": training.trainer.current_epoch,
        "best_epoch": read_checkpoint(training.best)["epoch"] + 1,
        "images_per_second": throughput.images_per_second,
        "training_seconds": round(throughput.seconds, 3),
        "parameters": parameters_of(module.plan, training.experiment.config.trainer.max_epochs),
        "weights": {
            "source": weights.source,
            "sha256": weights.sha256,
            "loaded": len(weights.loaded),
            "random": list(weights.random),
        },
        "views": list(module.views),
        "checkpoint": str(training.best.relative_to(training.folder)),
        "device": dataclasses.asdict(training.device) | hardware,
        "cache": training.cache.summary(),
        "notes": [*training.notes, *training.cache.notes],
        "unreadable": data.unreadable.known() if data.unreadable else {},
    }


def load_weights_to_resume(module: TransferModule, resume: Path | None) -> int:
    """Load the weights of the checkpoint to resume from, if any; returns the epoch in which the run begins."""
    if resume is None:
        return 0
    checkpoint = read_checkpoint(resume)
    module.load_state_dict(checkpoint["state_dict"])
    epoch: int = checkpoint["epoch"]
    return epoch


def load_best(module: TransferModule, best: Path) -> dict[str, float]:
    """Load the weights of the best checkpoint; returns the metrics that were recorded with them."""
    checkpoint = read_checkpoint(best)
    module.load_state_dict(checkpoint["state_dict"])
    module.thresholds = thresholds_in(checkpoint)
    return dict(checkpoint["graft"]["metrics"])


def device_name(device: torch.device) -> str:
    """The name of a GPU; for other devices their type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
