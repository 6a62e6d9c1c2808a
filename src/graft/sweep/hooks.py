"""Hydra integration of sweeps: resolvers, sweepers, and the callback that reports at the end of a multirun."""

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from graft.config import optimizers
from graft.config.config_hash import config_hash
from graft.config.metrics import direction, known_directions
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.errors import GraftError
from graft.report.summary import FILE, find_summaries
from graft.sweep.grid import GridSweeper
from graft.sweep.job_folders import job_folder
from graft.sweep.optuna_sweeper import OptunaSweeper
from graft.sweep.subprocess_job import SWEEP
from graft.system.escaping import printable, say
from graft.system.slurm import slurm_tasks


class ShowComparison(Callback):
    """Prints the comparison table at the end of a multirun, how to open TensorBoard, and which jobs did not finish."""

    def __init__(self) -> None:
        self._before: dict[Path, object] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ[SWEEP] = str(os.getpid())
        self._before = {job.folder: job.state for job in unfinished_jobs(_folder(config))}

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises SystemExit(1) if a job of this command did not finish, even if the table cannot be written."""
        error, folder = sys.exc_info()[1], _folder(config)
        failed: list[Job] | None = None
        with reporting_failure("The summaries of the jobs could not be read"):
            failed = [job for job in unfinished_jobs(folder) if self._before.get(job.folder) != job.state]
        with reporting_failure("The table could not be written"):
            show_runs(config, folder)
        if failed or (error and has_runs(folder)):
            with reporting_failure("The unfinished jobs could not be listed"):
                sys.stdout.flush()
                lines = "".join(map(str, failed or ()))
                sys.stderr.write(
                    printable(f"\n{lines}\nRun the unfinished jobs again:\n  {resume_command(config)}\n", lines=True)
                )
        if failed != [] and not error:  # Hydra would turn any other exception into a warning
            raise SystemExit(1)


@dataclass(frozen=True)
class Job:
    """A job that did not finish, or whose summary cannot be read.

    Attributes:
        folder: its folder.
        state: differs after the job was run again.
        status: "failed", "interrupted" or "unknown".
        overrides: those that differ between the jobs.
        reason: first line of the error.
    """

    folder: Path
    state: object
    status: str
    overrides: str
    reason: str

    def __str__(self) -> str:
        return f"{self.status}  {self.folder}  {self.overrides}".rstrip() + f"\n    {self.reason}".rstrip() + "\n"


def unfinished_jobs(sweep: Path) -> list[Job]:
    """The jobs in `sweep` that failed, were interrupted, or whose summaries cannot be read."""
    runs, unreadable = find_summaries(sweep)
    common = set[str].intersection(*(set(run.overrides) for run in runs)) if runs else set()
    jobs = []
    for run in runs:
        if run.unfinished:
            differing = " ".join(word for word in run.overrides if word not in common)
            reason = next(iter(run.error.strip().splitlines()), "")
            jobs.append(Job(run.folder, run.attempts, run.status, differing, reason))
    for each in unreadable:
        with contextlib.suppress(OSError):  # gone by now
            state = each.file.lstat()
            jobs.append(Job(each.file.parent, (state.st_size, state.st_mtime_ns), "unknown", "", str(each)))
    return jobs


def has_runs(folder: Path) -> bool:
    """Whether any run in `folder` has a summary."""
    return next(folder.rglob(FILE), None) is not None


def show_runs(config: DictConfig, folder: Path) -> None:
    """Print the comparison table of a sweep, and the commands that open TensorBoard and the Optuna dashboard."""
    if not has_runs(folder):
        return
    from graft.tasks.compare import show

    show(folder)
    say(f"\nOpen the runs:    tensorboard --logdir {folder}")
    if config.search.storage:
        say(f"Open the search:  optuna-dashboard {config.search.storage}")


@contextlib.contextmanager
def reporting_failure(what: str) -> Iterator[None]:
    """Write an exception inside to stderr instead of raising it."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, GraftError) else traceback.format_exc()
        sys.stderr.write(printable(f"{what}: {reason}\n", lines=True))


def _folder(config: DictConfig) -> Path:
    return Path(config.hydra.sweep.dir)


def resume_command(config: DictConfig) -> str:
    """The command that resumes the sweep of `config`, in its folder."""
    hydra = config.hydra
    hydra_overrides = [word for word in hydra.overrides.hydra if not word.startswith("hydra.mode=")]
    overrides = [word for word in hydra.overrides.task if not word.startswith("sweep_name=")]
    if not any(word.startswith("hydra.sweep.dir=") for word in hydra_overrides):
        overrides.append(f"sweep_name={config.sweep_name}")
    return shlex.join(["graft", "train", "-m", *hydra_overrides, *overrides])


def _job_folder(number: int, *, _root_: DictConfig) -> str:
    return job_folder(Path(_root_.hydra.sweep.dir), number, config_hash(typed(_root_, TrainConfig)))


def _run_name(strategy: str, moment: str) -> str:
    """Name of a run's folder: the start time, or the Slurm step, whose tasks start at different times and which keeps
    its number when it is queued again."""
    tasks = slurm_tasks()
    return f"slurm_{tasks.step}" if strategy == "ddp_slurm" and tasks else moment


def _jobs_at_once() -> int:
    from graft.sweep.gpu_slots import jobs_at_once  # only needed where jobs run in parallel

    return jobs_at_once()


def _gpus_per_job() -> int:
    from graft.system.gpu import visible_gpus

    return min(1, len(visible_gpus()))


def _direction(metric: str, *, _root_: DictConfig) -> str:
    """Optuna's direction of a search for the best `metric`: "maximize" or "minimize"."""
    nodes = ((str(name), node) for name, node in _root_.get("metrics", {}).items() if isinstance(node, DictConfig))
    metrics = {name: {str(key): value for key, value in node.items()} for name, node in nodes}
    return f"{direction(metric, known_directions(metrics))}imize"


def register() -> None:
    """Register with Hydra the resolvers, the sweepers and the optimizers that the configurations of sweeps name."""
    OmegaConf.register_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_resolver("job_folder", _job_folder, replace=True)
    OmegaConf.register_resolver("jobs_at_once", _jobs_at_once, replace=True)
    OmegaConf.register_resolver("gpus_per_job", _gpus_per_job, replace=True)
    OmegaConf.register_resolver("direction", _direction, replace=True)
    optimizers.register()
    Plugins.instance().register(GridSweeper)
    Plugins.instance().register(OptunaSweeper)


register()  # also here: a launcher's worker processes import this module with their callbacks
