"""Builds Lightning's Trainer from a run's configuration."""

import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from graft.config.schema import TrainConfig, TrainerConfig
from graft.errors import ConfigError
from graft.learning.callbacks.pruning import Pruning
from graft.learning.checkpoint_writing import AtomicCheckpointIO
from graft.learning.compat import validate_at_the_end_too
from graft.learning.distributed import environment_of
from graft.learning.pruning import TrialReporter
from graft.system.device import Device, benchmark
from graft.tasks.build import Experiment


def build_trainer(
    experiment: Experiment,
    device: Device,
    folder: Path,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback],
) -> pl.Trainer:
    """Lightning's Trainer for a run.

    Args:
        experiment: what it is to train.
        device: where to compute.
        folder: of the run.
        loggers: of the run.
        callbacks: of the run; one that prunes a trial of a search is added.
    """
    config, own = experiment.config, experiment.config.trainer
    batches = -(-experiment.data.steps_per_epoch // (device.devices * own.num_nodes))
    strategy: str | Strategy = "auto"
    if device.devices * own.num_nodes > 1:
        searches = not experiment.module.plan.static  # for parameters that are frozen in this epoch
        strategy = DDPStrategy(find_unused_parameters=searches, gradient_as_bucket_view=True)
    callbacks = [*callbacks, *pruning(config)]
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
        logger=list(loggers) or False,
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


def check_trainer_arguments(config: TrainerConfig) -> None:
    """Raise ConfigError for an argument of the group `trainer` that Lightning's Trainer refuses."""
    for name, value in config.extra().items():
        try:
            pl.Trainer(
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **{name: value},
            )
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise ConfigError(f"trainer.{name}={value}: refused by Lightning's Trainer ({error}).") from error


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
