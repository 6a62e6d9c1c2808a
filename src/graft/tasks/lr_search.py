"""Search for a learning rate: the part of `graft lr_find` that imports torch."""

import copy
import dataclasses
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graft.config.commands import LrFindConfig
from graft.config.schema import SchedulerConfig
from graft.data.splits import Splits
from graft.data.workers import explaining_worker_failures
from graft.errors import ConfigError
from graft.learning.lr_finder import Curve, LrSweep, WithoutMonitor
from graft.review.rate_curve import draw_rates
from graft.system.device import choose_device
from graft.system.files import write_atomically
from graft.system.gpu_memory import explaining_out_of_memory
from graft.system.progress import progress_bar
from graft.tasks.checks import check_loss_weights
from graft.tasks.fit import build_experiment, log_plan
from graft.tasks.follow_task import adapted
from graft.tasks.run import versions
from graft.tasks.trainer import build_trainer, check_trainer_arguments, silence_lightning

log = logging.getLogger("graft")

OWN_KEYS = ("lr_find.", "optimizer.lr=", "hydra.", "paths.outputs=")


def run(config: LrFindConfig, splits: Splits, overrides: Sequence[str], folder: Path) -> Curve:
    """Make the steps, write lr_find.png and lr_find.json to `folder`, and log the suggestion.

    Args:
        config: of the command, settled.
        splits: the data.
        overrides: of the command line, for the command that uses the suggestion.
        folder: of the output.

    Raises:
        ConfigError: several devices, which would have to agree.
    """
    curve = search(config, splits, folder)
    lr, searched = config.optimizer.lr, config.lr_find
    result = {
        "suggestion": curve.halfway,
        "steepest": curve.steepest,
        "configured": lr,
        "diverged": curve.diverged,
        "steps": [
            {"lr": rate, "loss": loss, "smoothed": smoothed}
            for rate, loss, smoothed in zip(curve.rates, curve.losses, curve.smoothed, strict=True)
        ],
        "seed": config.seed,
        "batch_size": config.data.batch_size,
        "versions": versions(),
    }
    write_atomically(folder / "lr_find.json", (json.dumps(result, indent=2) + "\n").encode())
    draw_rates(curve, lr).save(folder / "lr_find.png")
    ended = f"diverged at lr {curve.rates[-1]:.2g}" if curve.diverged and curve.rates else f"up to {searched.max_lr:g}"
    log.info("%d steps, %s · %s", len(curve.rates), ended, folder / "lr_find.png")
    if curve.halfway is None:
        log.warning("note  no suggestion: the loss does not fall. Try other lr_find.min_lr and max_lr, or more steps")
        return curve
    steepest = "" if curve.steepest is None else f" · steepest descent at {curve.steepest:.2g}"
    log.info(
        "suggestion  optimizer.lr=%.2g (half of the fall of the loss)%s · configured %g", curve.halfway, steepest, lr
    )
    kept = [word for word in overrides if not word.lstrip("+").startswith(OWN_KEYS)]
    log.info("  %s", shlex.join(["graft", "train", *kept, f"optimizer.lr={curve.halfway:.2g}"]))
    return curve


def search(config: LrFindConfig, splits: Splits, folder: Path) -> Curve:
    """The losses while the learning rate rises; see `run` for the arguments.

    The network, the data, the loss and the precision are those of the run, without validation, schedule, loggers and
    further callbacks. A freeze policy that changes with the epoch does so here, too.
    """
    silence_lightning()
    device = choose_device(config.trainer)
    if device.devices * config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.devices={device.devices}: graft lr_find searches in one process.\nGive trainer.devices=1; with "
            "N devices, a batch is N times as large: give data.batch_size accordingly."
        )
    check_trainer_arguments(config.trainer)
    splits = adapted(config, splits)
    check_loss_weights(config, splits.classes)
    experiment = build_experiment(config, splits, device, folder, None)
    log_plan(experiment.module.plan, config, device)
    for note in experiment.notes:
        log.info("note  %s", note)
    module = experiment.module
    module.log_every, module.scheduler_config = sys.maxsize, SchedulerConfig()
    module.loss_monitor = WithoutMonitor(module, skip=False, limit=0)
    changed = copy.deepcopy(experiment.config)
    limits: dict[str, Any] = {
        "max_steps": config.lr_find.steps, "max_epochs": -1, "limit_val_batches": 0, "val_check_interval": None,
        "enable_checkpointing": False,
    }  # fmt: skip
    vars(changed.trainer).update(limits)
    with progress_bar("steps", config.lr_find.steps) as bar:
        sweep = LrSweep(config.lr_find, config.optimizer.lr, bar.advance)
        trainer = build_trainer(dataclasses.replace(experiment, config=changed), device, folder, [], [sweep])
        with (
            explaining_worker_failures(),
            explaining_out_of_memory(trainer, experiment.data.batch_size, trainer.accumulate_grad_batches),
        ):
            trainer.fit(module, datamodule=experiment.data)
    return sweep.curve()
