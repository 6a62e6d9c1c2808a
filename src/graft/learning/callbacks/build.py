"""The callbacks of a training run, built from its configuration."""

import logging
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, EarlyStopping

from graft.config.schema import CallbacksConfig, TrainConfig
from graft.config.targets import TARGET, build
from graft.errors import ConfigError
from graft.learning.callbacks.averaging import AveragedWeights
from graft.learning.callbacks.progress import EpochLines, MetricsProgressBar, log_to_files
from graft.learning.callbacks.throughput import Throughput
from graft.learning.checkpoint_writing import BestCheckpoint, LatestCheckpoint, ResumePoint


def build_callbacks(config: TrainConfig, folder: Path, log: logging.Logger) -> list[Callback]:
    """The callbacks of a run; its checkpoints go to `folder`/checkpoints.

    `best.ckpt` holds the weights of the epoch with the best `optimized_metric` (of the last epoch with
    callbacks.checkpoint=last), without the optimizer; `last.ckpt` holds everything that resuming needs.

    Raises:
        ConfigError: a target that is no Callback, or refuses its arguments.
    """
    callbacks = extra_callbacks(config.callbacks)
    if config.callbacks.ema is not None:
        callbacks.insert(0, AveragedWeights(config.callbacks.ema))
    callbacks += [Throughput(), *checkpoint_callbacks(config, folder / "checkpoints")]
    if config.callbacks.early_stopping is not None:
        mode, patience = config.mode(config.optimized_metric), config.callbacks.early_stopping
        callbacks.append(EarlyStopping(config.optimized_metric, patience=patience, mode=mode, verbose=False))
    return callbacks + progress_callbacks(config.callbacks.progress, log)


def extra_callbacks(cfg: CallbacksConfig) -> list[Callback]:
    """The callbacks that the configuration adds by name.

    Raises:
        ConfigError: a target that is no Callback, or refuses its arguments.
    """
    callbacks = []
    for name, node in cfg.parts().items():
        callback = build(f"callbacks.{name}", node)
        if not isinstance(callback, Callback):
            kind = type(callback).__name__
            raise ConfigError(f"callbacks.{name}.{TARGET}={node[TARGET]}: gives a {kind}, not a Lightning Callback.")
        callbacks.append(callback)
    return callbacks


def checkpoint_callbacks(config: TrainConfig, folder: Path) -> list[Callback]:
    """The callbacks that write best.ckpt and last.ckpt to `folder`."""
    common: dict[str, Any] = {
        "dirpath": folder,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    mode = config.mode(config.optimized_metric)
    best: dict[str, Any] = {"filename": "best", "mode": mode, "save_weights_only": True, **common}
    return [
        BestCheckpoint(monitor=config.optimized_metric, save_on_train_epoch_end=False, **best)
        if config.callbacks.checkpoint == "best"
        else LatestCheckpoint(**best),
        ResumePoint(every=config.callbacks.checkpoint_every_n_steps, **common),
    ]


def progress_callbacks(progress: str, log: logging.Logger) -> list[Callback]:
    """The callbacks for `callbacks.progress`: "bar", "lines", "none", or "auto" (a bar on a terminal, else lines)."""
    if progress == "auto":
        progress = "bar" if sys.stderr.isatty() else "lines"
    if progress == "bar":
        bar = MetricsProgressBar(leave=True)

        def write(line: str) -> None:
            bar.print(line)
            log_to_files(log, line)

        return [bar, EpochLines(write)]
    return [EpochLines(log.info)] if progress == "lines" else []
