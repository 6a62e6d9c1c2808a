"""The heavy part of `graft train`: fit, test. Imported only when configuration and data are in order."""

import dataclasses
import io
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, Strategy

from graft.config.schema import TrainConfig, TrainerConfig
from graft.data.foreign import ModuleSplits
from graft.data.splits import Splits
from graft.data.workers import explaining_worker_failures
from graft.errors import ConfigError
from graft.features.cache import FeatureCache
from graft.learning.callbacks import Pace, Pruning, build_callbacks
from graft.learning.checkpoint_writing import WholeCheckpoints
from graft.learning.checkpoints import PREVIOUS, read_checkpoint, resume_point
from graft.learning.compat import validate_at_the_end_too
from graft.learning.distributed import environment_of, launch
from graft.learning.loggers import build_loggers
from graft.learning.module import Learner
from graft.learning.pruning import PRUNED, Judge
from graft.learning.views import IDENTITY, with_margin
from graft.review.layers import layer_table
from graft.review.training_review import Review, RunChoices
from graft.system.allocator import reuse_freed_memory
from graft.system.device import Device, benchmark, choose_device, explaining_nondeterminism
from graft.system.gpu_memory import explaining_out_of_memory
from graft.system.terminal import PlainConsole
from graft.tasks.batch_size import settle_batch_size
from graft.tasks.build import assemble, loaders, parameter_counts
from graft.tasks.resume import Resumption, forget_earlier_attempt
from graft.tasks.run import Run
from graft.transfer import TransferPlan

log = logging.getLogger("graft")


def run(config: TrainConfig, splits: Splits, record: Run, resumption: Resumption | None = None) -> None:
    """Fit and test as `config` says, in as many processes as it takes; the figures go into `record`."""
    device = choose_device(config.trainer)
    fingerprint = record.summary.get("data", {}).get("fingerprint")
    overrides = keys_of(record.summary["overrides"])
    choices = RunChoices({**record.summary["config"], "seed": config.seed}, overrides, fingerprint)
    if resumption is not None:
        for note in resumption.notes:
            log.warning("note  %s", note)
        for note in resumption.free:
            log.info("%s", note)
        if record.writes:
            resumption.carry_into(record.folder)
    elif record.writes:
        forget_earlier_attempt(record.folder)
    if isinstance(splits, ModuleSplits) and device.devices * config.trainer.num_nodes > 1:
        raise ConfigError(
            f"data._target_={splits.target} and trainer.devices={device.devices} disagree: each process "
            "would train on all batches of a LightningDataModule.\nGive trainer.devices=1."
        )
    if device.devices > 1 and config.trainer.strategy != "ddp_slurm":
        record.summary |= launch(one_process, device.devices, config, splits, device, choices, record.folder)
    else:
        record.summary |= one_process(config, splits, device, choices, record.folder)
    if resumption is not None:
        record.summary["notes"][:0] = resumption.notes
    (record.folder / "checkpoints" / PREVIOUS).unlink(missing_ok=True)  # it has served


def one_process(
    config: TrainConfig, splits: Splits, device: Device, choices: RunChoices, folder: Path
) -> dict[str, Any]:
    """The run of one process (of all, where there are several): from weights to the test's figures.

    Args:
        config: of the run, settled.
        splits: the data.
        device: where to compute.
        choices: the run's.
        folder: the run's folder.

    Returns:
        What the summary says of it: metrics, epochs, parameters, weights, checkpoint, notes, ….
    """
    quiet()
    keep = device.accelerator == "cpu" and config.trainer.keep_memory
    with reuse_freed_memory(keep), explaining_worker_failures():
        return _from_weights_to_test(config, splits, device, choices, folder)


def _from_weights_to_test(
    config: TrainConfig, splits: Splits, device: Device, choices: RunChoices, folder: Path
) -> dict[str, Any]:
    resume = resume_point(config.resume, folder)
    config, batch = settle_batch_size(config, splits, device, folder, resume)
    experiment = assemble(config, splits, folder)
    learner, data = experiment.learner, experiment.data
    learner.provenance["fingerprint"] = choices.fingerprint
    seen = with_margin(data.preprocessing, learner.views)
    tested = data if seen == data.preprocessing else loaders(config, splits, seen, data.unreadable)
    parameters = parameter_counts(learner.plan, config.trainer.max_epochs)
    title = f"{parameters['trainable']:,} of {parameters['total']:,} parameters train"
    tell(layer_table(learner.plan, f"{title} · {device.accelerator} × {device.devices} · {device.precision}"))
    notes = [*experiment.notes, *([batch] if batch else [])]
    for note in notes:
        log.info("note  %s", note)
    review = Review(config, learner, data, folder, choices)
    batches = -(-data.steps_per_epoch // (device.devices * config.trainer.num_nodes))
    trainer = build_trainer(config, device, folder, learner.plan, resume, batches, review.callbacks())
    review.open(trainer, notes)
    cache = FeatureCache(config, learner, data, trainer, begins=go_on_from(learner, resume))
    if config.trainer.baseline and resume is None:
        trainer.validate(learner, datamodule=data, verbose=False)
        said = "  ".join(f"{name} {value:.4f}" for name, value in learner.results.items())
        log.info("before the first step  %s", said)
    try:
        with (
            explaining_out_of_memory(trainer, data.batch_size, trainer.accumulate_grad_batches),
            explaining_nondeterminism(),
        ):
            trainer.fit(learner, datamodule=data, ckpt_path=resume, weights_only=True)
    except Exception:
        review.failed()
        raise
    epochs = trainer.current_epoch
    notes += [*([learner.collapsed] if learner.collapsed else []), *learner.watch.notes()]

    best = folder / "checkpoints" / "best.ckpt"
    figures = load_best(learner, best)
    pruned = any(isinstance(callback, Pruning) and callback.pruned for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if config.trainer.test and not pruned:
        if learner.views == IDENTITY:
            cache.provide_test()
        trainer.test(learner, datamodule=tested, verbose=False)
        figures |= {name: value for name, value in learner.results.items() if name.startswith("test/")}
    review.conclude(trainer, figures, read_checkpoint(best))
    cache.close()
    for logger in trainer.loggers:
        logger.finalize("success")
    log.info("%s", "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if name.count("/") == 1))
    for note in data.unreadable.notes() if data.unreadable else []:
        log.warning("note  %s", note)
        notes.append(note)
    pace = next(callback for callback in trainer.callbacks if isinstance(callback, Pace))  # type: ignore[attr-defined]
    return {
        **({"status": PRUNED} if pruned else {}),
        "metrics": figures,
        "epochs": epochs,
        "images_per_second": pace.images_per_second,
        "training_seconds": round(pace.seconds, 3),
        "parameters": parameters,
        "weights": {
            "source": experiment.weights.source,
            "sha256": experiment.weights.sha256,
            "loaded": len(experiment.weights.loaded),
            "random": list(experiment.weights.random),
        },
        "views": list(learner.views),
        "checkpoint": str(best.relative_to(folder)),
        "device": dataclasses.asdict(device)
        | {"name": name_of(trainer.strategy.root_device), "threads": torch.get_num_threads()},
        "cache": cache.summary(),
        "notes": [*notes, *cache.notes],
        "unreadable": data.unreadable.known() if data.unreadable else {},
    }


def keys_of(overrides: Sequence[str]) -> tuple[str, ...]:
    """The keys that the command line, or a sweep, sets for this run."""
    return tuple(word.lstrip("+").partition("=")[0] for word in overrides)


def build_trainer(
    config: TrainConfig,
    device: Device,
    folder: Path,
    plan: TransferPlan,
    resume: Path | None,
    batches: int,
    watching: Sequence[Callback] = (),
) -> pl.Trainer:
    """Lightning's Trainer as the configuration and the device want it, for epochs of `batches` training batches;
    `watching` are callbacks beside the usual ones."""
    own = config.trainer
    resume_step = None if resume is None else read_checkpoint(resume)["global_step"]
    loggers = build_loggers(config.logger, folder, resume_step)
    strategy: str | Strategy = "auto"
    if device.devices * own.num_nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=not plan.static, gradient_as_bucket_view=True)
    callbacks = [*build_callbacks(config, folder, log), *watching, *pruning(config)]
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
        benchmark=benchmark(own, steps_of(own, batches)),
        log_every_n_steps=own.log_every_n_steps,
        logger=loggers or False,
        callbacks=callbacks,
        plugins=[WholeCheckpoints(), environment_of(own.strategy)],
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


def steps_of(config: TrainerConfig, batches: int) -> float:
    """Batches that the whole run trains on, at most, by a TrainerConfig and the batches of an epoch."""
    steps = batches * config.max_epochs if config.max_epochs >= 0 else math.inf
    return min(steps, config.max_steps * config.accumulate_grad_batches) if config.max_steps >= 0 else steps


def pruning(config: TrainConfig) -> list[Pruning]:
    """What stops a hopeless trial of a search early; nothing in a run that is no trial."""
    if config.search.trial is None:
        return []
    return [Pruning(config.optimized_metric, Judge(config.search, config.trainer.max_epochs).hopeless)]


def validation_interval(config: TrainerConfig, batches: int) -> int | float | None:
    """trainer.val_check_interval as Lightning has it: in batches, and no more than an epoch of `batches` has."""
    every, limit = config.val_check_interval, config.limit_train_batches
    if not isinstance(every, int):
        return every
    epoch = batches if limit is None else limit if isinstance(limit, int) else int(limit * batches)
    return max(1, min(every * config.accumulate_grad_batches, batches, epoch))


def go_on_from(learner: Learner, resume: Path | None) -> int:
    """The epoch in which a run begins; a resumed one has the weights of its checkpoint from now on."""
    if resume is None:
        return 0
    checkpoint = read_checkpoint(resume)
    learner.load_state_dict(checkpoint["state_dict"])
    epoch: int = checkpoint["epoch"]
    return epoch


def load_best(learner: Learner, best: Path) -> dict[str, float]:
    """Put the best weights into `learner`; returns the figures of the moment they were saved."""
    checkpoint = read_checkpoint(best)
    learner.load_state_dict(checkpoint["state_dict"])
    return dict(checkpoint["graft"]["metrics"])


def name_of(device: torch.device) -> str:
    """A GPU's own name; else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def tell(table: Any) -> None:
    """A table, into the log: the terminal and train.log."""
    text = io.StringIO()
    PlainConsole(file=text, width=110).print(table)
    log.info("%s", text.getvalue().rstrip())


def quiet() -> None:
    """Silence what tells a user nothing: Lightning's tips and notes to developers."""
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
