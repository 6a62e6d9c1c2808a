"""Loggers of a run: metrics.csv, TensorBoard, and any other of Lightning's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from graft.config.schema import LoggerConfig
from graft.config.targets import TARGET, accepts, build
from graft.errors import ConfigError
from graft.learning.csv_logger import TableLogger
from graft.learning.run_files import METRICS


def csv(folder: Path, resume_step: int | None = None) -> TableLogger:
    """metrics.csv in the run's folder; a resumed run continues it after `resume_step`."""
    table = TableLogger(folder / METRICS)
    if resume_step is not None:
        table.resume_after(resume_step)
    return table


WHOLE_RUN, WATCH = "whole_run", "watch"
GROUPS = {"test": WHOLE_RUN, "epoch": WATCH, "lr": WATCH, "grad_norm": WATCH, "time": WATCH}
"""First part of a metric's name -> the group of its card. TensorBoard sorts groups by name and opens the first two,
which so are `train` and `val`: the learning curves."""


def tag(metric: str) -> str:
    """The tag of a metric in TensorBoard: "val/acc" is unchanged, "test/acc" becomes "whole_run/test/acc"."""
    group = GROUPS.get(metric.partition("/")[0])
    return metric if group is None else f"{group}/{metric}"


def whole_run_tag(metric: str) -> str:
    """The tag of a metric's only value for the whole run, that of the best epoch, e.g. "whole_run/val/acc"."""
    return f"{WHOLE_RUN}/{metric}"


class CurvesFirst(TensorBoardLogger):
    """Event files in `folder` itself, with tags that make TensorBoard show the learning curves first."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False, purge_step=purge_step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({tag(name): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()  # and no hparams.yaml: the configuration is in .hydra/config.yaml


def tensorboard(folder: Path, resume_step: int | None = None) -> CurvesFirst:
    """Event files in the run's folder; what they hold after `resume_step` is superseded in a resumed run."""
    return CurvesFirst(folder, purge_step=None if resume_step is None else resume_step + 1)


def build_loggers(cfg: LoggerConfig, folder: Path, resume_step: int | None = None) -> list[Logger]:
    """The loggers of `cfg`.

    A target gets `folder` (the run's) and `resume_step` (the optimizer step that the run resumes from, or None) where
    it takes arguments of these names, and the run's folder as `save_dir` unless that is given.

    Raises:
        ConfigError: a package that is not installed, a target that is no Logger, or refuses its arguments.
    """
    loggers = []
    offered: dict[str, Any] = {"folder": folder, "save_dir": str(folder), "resume_step": resume_step}
    for name, node in cfg.parts().items():
        supplied = {key: value for key, value in offered.items() if key not in node and accepts(node[TARGET], key)}
        try:
            logger = build(f"logger.{name}", node, **supplied)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"logger={name}: needs a package that is not installed ({error}).\n"
                f"pip install 'graft-vision[{name}]', or leave it out of logger=[…]."
            ) from error
        if not isinstance(logger, Logger):
            raise ConfigError(f"logger.{name}.{TARGET}={node[TARGET]}: gives a {type(logger).__name__}, not a Logger.")
        loggers.append(logger)
    return loggers
