"""Loggers of a run: metrics.csv, TensorBoard, and any other of Lightning's."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CometLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from graft.config.schema import LoggerConfig
from graft.config.targets import TARGET, accepts, build
from graft.errors import ConfigError, GraftError, pip_install
from graft.learning.csv_logger import TableLogger
from graft.learning.run_files import METRICS, TRACKERS
from graft.learning.trackers import TrackedRun, tracker_named, tracker_of
from graft.system.files import read_regular, write_atomically


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


def comet(folder: Path, online: bool = True, **options: Any) -> CometLogger:
    """Comet; with online=false an archive in the run's folder, in comet/, where Lightning's logger would write nothing.

    Args:
        folder: of the run.
        online: whether to log to the server.
        options: other arguments of Lightning's CometLogger.
    """
    if online:
        return CometLogger(online=True, **options)
    os.environ["COMET_START_ONLINE"] = "false"  # by its argument `online` the logger would disable Comet
    try:
        return CometLogger(**{"offline_directory": str(folder / "comet"), **options})
    finally:
        del os.environ["COMET_START_ONLINE"]


def build_loggers(
    cfg: LoggerConfig, folder: Path, resume_step: int | None = None, group: str | None = None
) -> list[Logger]:
    """The loggers of `cfg`; those of trackers have started, or continued, the run there.

    A target gets `folder` (the run's) and `resume_step` (the optimizer step that the run resumes from, or None) where
    it takes arguments of these names, and the run's folder as `save_dir` unless that is given.

    Args:
        cfg: the group `logger`.
        folder: of the run.
        resume_step: the optimizer step that the run resumes from, or None.
        group: name of the sweep, for trackers.

    Raises:
        ConfigError: a package that is not installed, a target that is no Logger or refuses its arguments, a tracker
            without an account or a connection.
    """
    loggers: list[Logger] = []
    known = _recorded_ids(folder) if resume_step is not None else {}
    name = folder.name if group is None else f"{group}/{folder.name}"
    opened: dict[str, str] = {}
    try:
        for key, node in cfg.parts().items():
            run = TrackedRun(name, group, known.get(key))
            logger = _build(key, node, folder, resume_step, run)
            if (tracker := tracker_of(logger)) is not None and _is_first_process():
                with tracker.opening(), _explaining(key, node):
                    opened[key] = tracker.open(logger, run)
            loggers.append(logger)
    except BaseException:
        finish(loggers, success=False)
        raise
    if opened:
        write_atomically(folder / TRACKERS, (json.dumps(opened, indent=2) + "\n").encode())
    return loggers


@contextlib.contextmanager
def finishing(loggers: Sequence[Logger]) -> Iterator[None]:
    """A context for the run that `loggers` log; at its end it is finished, or has failed, in each tracker too."""
    try:
        yield
    except BaseException:
        finish(loggers, success=False)
        raise
    finish(loggers, success=True)


def finish(loggers: Sequence[Logger], *, success: bool) -> None:
    """End the run in the trackers, in the first process."""
    for logger in loggers:
        if (tracker := tracker_of(logger)) is not None and _is_first_process():
            tracker.finish(logger, success)


def log_choices(loggers: Sequence[Logger], choices: Mapping[str, Any], *, resuming: bool) -> None:
    """Log a run's choices as hyperparameters; TensorBoard gets them from the review."""
    for logger in loggers:
        tracker = tracker_of(logger)
        fixed = resuming and tracker is not None and tracker.fixed_choices
        if not isinstance(logger, TensorBoardLogger) and not fixed:
            logger.log_hyperparams(dict(choices))


def log_best(loggers: Sequence[Logger], metrics: Mapping[str, float], step: int) -> None:
    """Log the validation of the best checkpoint to trackers as best/val/…, because their tables show the last value."""
    best = {
        f"best/{name}": value for name, value in metrics.items() if name.startswith("val/") and name.count("/") == 1
    }
    for logger in loggers:
        if tracker_of(logger) is not None:
            logger.log_metrics(best, step)


def _build(key: str, node: Mapping[str, Any], folder: Path, resume_step: int | None, run: TrackedRun) -> Logger:
    offered: dict[str, Any] = {"folder": folder, "save_dir": str(folder), "resume_step": resume_step}
    supplied = {name: value for name, value in offered.items() if name not in node and accepts(node[TARGET], name)}
    tracker = tracker_named(node)
    if tracker is not None:
        arguments = {name: value for name, value in tracker.arguments(run, node).items() if value is not None}
        supplied |= {name: value for name, value in arguments.items() if name == "tags" or node.get(name) is None}
    with _explaining(key, node):
        logger = build(f"logger.{key}", node, **supplied)
    if not isinstance(logger, Logger):
        raise ConfigError(f"logger.{key}.{TARGET}={node[TARGET]}: gives a {type(logger).__name__}, not a Logger.")
    return logger


@contextlib.contextmanager
def _explaining(key: str, node: Mapping[str, Any]) -> Iterator[None]:
    """Turn any error of a logger's library into a ConfigError that names the logger and the way out."""
    try:
        yield
    except GraftError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"logger={key}: needs a package that is not installed ({error}).\n"
            f"{pip_install(key)}, or leave it out of logger=[…]."
        ) from error
    except Exception as error:
        tracker = tracker_named(node)
        way_out = tracker.way_out if tracker else "Leave it out of logger=[…]."
        raise ConfigError(
            f"logger.{key}.{TARGET}={node[TARGET]}: cannot start ({type(error).__name__}: {error}).\n"
            + way_out.format(key=f"logger.{key}")
        ) from error


def _is_first_process() -> bool:
    rank: int = rank_zero_only.rank  # type: ignore[attr-defined]
    return rank == 0


def _recorded_ids(folder: Path) -> dict[str, str]:
    try:
        ids = json.loads(read_regular(folder / TRACKERS, 1 << 16))
    except (OSError, ValueError):
        return {}
    return {str(name): value for name, value in ids.items() if isinstance(value, str)} if isinstance(ids, dict) else {}
