"""Train and test a run: the part of `graft train` that imports torch and Lightning."""

import dataclasses
import io
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from graft.config.schema import TrainConfig, TrainerConfig
from graft.data.foreign import ModuleSplits
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.data.workers import explaining_worker_failures
from graft.errors import ConfigError
from graft.features.cache import FeatureCache
from graft.learning.callbacks.build import build_callbacks
from graft.learning.callbacks.pruning import Pruning
from graft.learning.callbacks.throughput import Throughput
from graft.learning.checkpoint_writing import AtomicCheckpointIO
from graft.learning.checkpoints import BEST, PREVIOUS, read_checkpoint, resume_point
from graft.learning.compat import validate_at_the_end_too
from graft.learning.distributed import environment_of, launch
from graft.learning.loggers import build_loggers
from graft.learning.module import TransferModule
from graft.learning.pruning import PRUNED, TrialReporter
from graft.learning.views import IDENTITY, with_margin
from graft.review.evaluation_tables import accuracy_table
from graft.review.layers import layer_table, parameter_table
from graft.review.training_review import Review, RunChoices
from graft.system.allocator import reuse_freed_memory
from graft.system.device import Device, benchmark, choose_device, explaining_nondeterminism
from graft.system.gpu_memory import explaining_out_of_memory
from graft.system.terminal import PlainConsole
from graft.tasks.batch_size import resolve_batch_size
from graft.tasks.build import Experiment, assemble, loaders, parameters_of
from graft.tasks.checks import check_class_weights
from graft.tasks.data import available_data
from graft.tasks.resume import Resumption, remove_earlier_attempt
from graft.tasks.run import Run
from graft.transfer import TransferPlan

log = logging.getLogger("graft")

T = TypeVar("T", bound=Callback)


@dataclasses.dataclass(frozen=True)
class Training:
    """A run that is ready to train, with everything that its steps need.

    Attributes:
        config: of the run, with every "auto" resolved.
        device: where it computes.
        folder: of the run.
        resume: the checkpoint that it resumes from, if any.
        experiment: module, data and weights.
        test_data: of the test, which may need a margin around the images.
        trainer: Lightning's.
        review: the figures in TensorBoard.
        cache: features of frozen layers.
        notes: for the summary, one sentence each; the steps append to it.
    """

    config: TrainConfig
    device: Device
    folder: Path
    resume: Path | None
    experiment: Experiment
    test_data: TrainingData
    trainer: pl.Trainer
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


def run(config: TrainConfig, splits: Splits, record: Run, resumption: Resumption | None = None) -> None:
    """Train and test a run in as many processes as it is configured for; the results go to `record.summary`."""
    device = choose_device(config.trainer)
    refuse_several_processes(config, splits, device)
    start_folder(record, resumption)
    fingerprint = record.summary.get("data", {}).get("fingerprint")
    choices = RunChoices({**record.summary["config"], "seed": config.seed}, record.summary["swept"], fingerprint)
    if device.devices > 1 and config.trainer.strategy != "ddp_slurm":
        record.summary |= launch(one_process, device.devices, config, splits, device, choices, record.folder)
    else:
        record.summary |= one_process(config, splits, device, choices, record.folder)
    if resumption is not None:
        record.summary["notes"][:0] = resumption.notes
    (record.folder / "checkpoints" / PREVIOUS).unlink(missing_ok=True)  # last.ckpt is complete


def refuse_several_processes(config: TrainConfig, splits: Splits, device: Device) -> None:
    """Raise ConfigError for a LightningDataModule in several processes."""
    if isinstance(splits, ModuleSplits) and device.devices * config.trainer.num_nodes > 1:
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
        return fit_and_test(prepare_training(config, splits, device, choices, folder))


def fit_and_test(training: Training) -> dict[str, Any]:
    """Train, test the best checkpoint, and return the keys of the summary."""
    try:
        validate_baseline(training)
        fit(training)
        return conclude(training, run_test(training))
    finally:
        training.review.draw_curves()


def prepare_training(
    config: TrainConfig, splits: Splits, device: Device, choices: RunChoices, folder: Path
) -> Training:
    """Build everything that a run needs; see `one_process` for the arguments."""
    resume = resume_point(config.resume, folder)
    parts = assemble_training(config, splits, device, folder, choices.fingerprint, resume, choices)
    config, experiment, trainer, notes = parts.config, parts.experiment, parts.trainer, parts.notes
    module, data = experiment.module, experiment.data
    test_data = data_for_test(config, experiment)  # refuses impossible views before training
    log_plan(module.plan, config, device)
    for note in notes:
        log.info("note  %s", note)
    assert parts.review is not None
    parts.review.open(trainer, notes)
    log_choices(trainer, choices)
    cache = FeatureCache(config, module, data, trainer, begins=load_weights_to_resume(module, resume))
    return Training(config, device, folder, resume, experiment, test_data, trainer, parts.review, cache, notes)


@dataclasses.dataclass(frozen=True)
class TrainingParts:
    """What a run consists of, ready for `trainer.fit(experiment.module, datamodule=experiment.data)`.

    Attributes:
        config: of the run, with a number for data.batch_size.
        experiment: the LightningModule and the LightningDataModule.
        trainer: with the configured callbacks and loggers.
        review: the figures in TensorBoard; None where only the parts are needed.
        notes: for the user, one sentence each.
    """

    config: TrainConfig
    experiment: Experiment
    trainer: pl.Trainer
    review: Review | None
    notes: list[str]


def assemble_training(
    config: TrainConfig,
    splits: Splits,
    device: Device,
    folder: Path,
    fingerprint: str | None,
    resume: Path | None = None,
    choices: RunChoices | None = None,
) -> TrainingParts:
    """Build module, data and Trainer.

    Args:
        config: of the run, settled.
        splits: the data.
        device: where to compute.
        folder: of the run.
        fingerprint: of the data, for the checkpoints.
        resume: the checkpoint that the run resumes from.
        choices: that identify the run, for its review; None for a run without one.
    """
    config, batch_note = resolve_batch_size(config, splits, device, folder, resume)
    experiment = assemble(config, splits, folder)
    module, data = experiment.module, experiment.data
    module.provenance["fingerprint"] = fingerprint
    review = None if choices is None else Review(config, module, data, folder, choices)
    batches = -(-data.steps_per_epoch // (device.devices * config.trainer.num_nodes))
    callbacks = review.callbacks() if review else ()
    trainer = build_trainer(config, device, folder, module.plan, resume, batches, callbacks)
    return TrainingParts(
        config, experiment, trainer, review, [*experiment.notes, *([batch_note] if batch_note else [])]
    )


def build(config: TrainConfig, folder: Path) -> TrainingParts:
    """The parts of a run for a program of the user's own, which decides what to do with them.

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
    check_class_weights(config.loss.class_weights, splits.classes)
    training = assemble_training(config, splits, device, folder, splits.fingerprint())
    experiment = training.experiment
    if data_for_test(training.config, experiment) is not experiment.data:
        views = ",".join(experiment.module.views)
        raise ConfigError(
            f"tta=true with views=[{views}]: needs larger images for the test than for validation.\n"
            "Use views=[identity,hflip], or graft.train."
        )
    return training


def log_plan(plan: TransferPlan, config: TrainConfig, device: Device) -> None:
    """Log which parameters train, and at which learning rates."""
    counts = parameters_of(plan, config.trainer.max_epochs)
    title = f"{counts['trainable']:,} of {counts['total']:,} parameters train"
    log_table(layer_table(plan, f"{title} · {device.accelerator} × {device.devices} · {device.precision}"))
    if config.review.layers == "full":
        log_table(parameter_table(plan, config.trainer.max_epochs))


def validate_baseline(training: Training) -> None:
    """Validate once before the first step (trainer.baseline)."""
    if training.config.trainer.baseline and training.resume is None:
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
    for callback in training.callbacks(EarlyStopping):
        if callback.stopped_epoch:
            note = (
                f"early stopping after epoch {trainer.current_epoch} of {trainer.max_epochs}: {callback.monitor} has "
                f"not improved in {callback.patience} validations (callbacks.early_stopping)"
            )
            log.info("note  %s", note)
            training.notes.append(note)
    training.notes.extend([*([module.collapsed] if module.collapsed else []), *module.loss_monitor.notes()])


def run_test(training: Training) -> dict[str, float]:
    """Load the best checkpoint and test it, unless the run is not to be tested; returns its metrics."""
    module = training.experiment.module
    metrics = load_best(module, training.best)
    if training.config.trainer.test and not training.pruned:
        if module.views == IDENTITY:
            training.cache.provide_test()
        training.trainer.test(module, datamodule=training.test_data, verbose=False)
        metrics |= {name: value for name, value in module.results.items() if name.startswith("test/")}
    return metrics


def data_for_test(config: TrainConfig, experiment: Experiment) -> TrainingData:
    """The data of the test, with the margin that its views need.

    Raises:
        ConfigError: a view needs a margin that the preprocessing does not leave.
    """
    data = experiment.data
    preprocessing = with_margin(data.preprocessing, experiment.module.views)
    if preprocessing == data.preprocessing:
        return data
    return loaders(config, data.splits, preprocessing, data.unreadable)


def conclude(training: Training, metrics: dict[str, float]) -> dict[str, Any]:
    """Write the review, close what is open, log the result, and return the keys of the summary."""
    training.review.conclude(training.trainer, metrics, read_checkpoint(training.best))
    training.cache.close()
    for logger in training.trainer.loggers:
        logger.finalize("success")
    module = training.experiment.module
    if module.test_counts is not None:
        log_table(accuracy_table(module.classes, module.test_counts))
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
        "epochs": training.trainer.current_epoch,
        "best_epoch": read_checkpoint(training.best)["epoch"] + 1,
        "images_per_second": throughput.images_per_second,
        "training_seconds": round(throughput.seconds, 3),
        "parameters": parameters_of(module.plan, training.config.trainer.max_epochs),
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


def build_trainer(
    config: TrainConfig,
    device: Device,
    folder: Path,
    plan: TransferPlan,
    resume: Path | None,
    batches: int,
    extra: Sequence[Callback] = (),
) -> pl.Trainer:
    """Lightning's Trainer for a run.

    Args:
        config: of the run.
        device: where to compute.
        folder: of the run.
        plan: of the network; a static one lets DDP skip its search for unused parameters.
        resume: the checkpoint that the run resumes from, if any.
        batches: number of training batches of an epoch.
        extra: callbacks in addition to those of the configuration.
    """
    own = config.trainer
    resume_step = None if resume is None else read_checkpoint(resume)["global_step"]
    loggers = build_loggers(config.logger, folder, resume_step)
    strategy: str | Strategy = "auto"
    if device.devices * own.num_nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=not plan.static, gradient_as_bucket_view=True)
    callbacks = [*build_callbacks(config, folder, log), *extra, *pruning(config)]
    trainer = pl.Trainer(
        accelerator=device.accelerator,
        devices=device.devices,
        num_nodes=own.num_nodes,
        strategy=strategy,
        precision=device.precision,  # type: ignore[arg-type]
        max_epochs=own.max_epochs,
        max_steps=own.max_steps,
        val_check_interval=validation_interval(own, batches),
        gradient_clip_val=own.gradient_clip_val,
        accumulate_grad_batches=own.accumulate_grad_batches,
        deterministic=own.deterministic,  # type: ignore[arg-type]
        benchmark=benchmark(own, total_batches(own, batches)),
        log_every_n_steps=own.log_every_n_steps,
        logger=loggers or False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), environment_of(own.strategy)],
        enable_progress_bar=any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        limit_train_batches=own.limit_train_batches,
        limit_val_batches=own.limit_val_batches,
        limit_test_batches=own.limit_test_batches,
        **own.extra(),
    )
    validate_at_the_end_too(trainer)
    return trainer


def total_batches(config: TrainerConfig, batches: int) -> float:
    """Largest number of batches that the run trains on, given the number of batches of an epoch."""
    steps = batches * config.max_epochs if config.max_epochs >= 0 else math.inf
    return min(steps, config.max_steps * config.accumulate_grad_batches) if config.max_steps >= 0 else steps


def pruning(config: TrainConfig) -> list[Pruning]:
    """The callback that stops a hopeless trial of a search early; none for other runs."""
    if config.search.trial is None:
        return []
    return [Pruning(config.optimized_metric, TrialReporter(config.search, config.trainer.max_epochs).should_prune)]


def validation_interval(config: TrainerConfig, batches: int) -> int | float | None:
    """trainer.val_check_interval in batches, as Lightning expects it, and at most an epoch of `batches`."""
    every, limit = config.val_check_interval, config.limit_train_batches
    if not isinstance(every, int):
        return every
    epoch = batches if limit is None else limit if isinstance(limit, int) else int(limit * batches)
    return max(1, min(every * config.accumulate_grad_batches, batches, epoch))


def log_choices(trainer: pl.Trainer, choices: RunChoices) -> None:
    """Log the run's choices as hyperparameters to loggers such as MLflow's; TensorBoard gets them from the review."""
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(choices.choices))


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
    return dict(checkpoint["graft"]["metrics"])


def device_name(device: torch.device) -> str:
    """The name of a GPU; for other devices their type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def log_table(table: Any) -> None:
    """Log a table: to the terminal and train.log."""
    text = io.StringIO()
    PlainConsole(file=text, width=110).print(table)
    log.info("%s", text.getvalue().rstrip())


def silence_lightning() -> None:
    """Silence Lightning's warnings and tips that are of no use to a user of Graft."""
    for pattern in (
        "does not have many workers",
        "LeafSpec",
        "Checkpoint directory",
        "number of training batches",
        "sync_dist",
        "srun. command is available",
    ):
        warnings.filterwarnings("ignore", message=f".*{pattern}.*")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
