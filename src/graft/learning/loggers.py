"""Loggers of a run: metrics.csv, TensorBoard, and any other of Lightning's."""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from graft.config.schema import LoggerConfig
from graft.config.targets import TARGET, accepts, build
from graft.errors import ConfigError
from graft.learning.csv_logger import TableLogger


def csv(folder: Path, resume_step: int | None = None) -> TableLogger:
    """metrics.csv in the run's folder; a resumed run continues it after `resume_step`."""
    table = TableLogger(folder / "metrics.csv")
    if resume_step is not None:
        table.resume_after(resume_step)
    return table


def tensorboard(folder: Path, resume_step: int | None = None) -> TensorBoardLogger:
    """Event files in the run's folder, in tensorboard/; those after `resume_step` are superseded in a resumed run."""
    purge = None if resume_step is None else resume_step + 1
    return TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=purge)


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
