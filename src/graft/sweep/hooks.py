"""What precedes the first job of a sweep and what follows the last."""

import contextlib
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

from graft.config.config_hash import config_hash
from graft.config.metrics import direction
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.errors import GraftError
from graft.report.summary import FILE, find_summaries
from graft.sweep.grid import Grid
from graft.sweep.job_folders import job_folder
from graft.system.escaping import printable, say
from graft.system.slurm import slurm_tasks


class ShowComparison(Callback):
    """Ends a multirun with its table, the line that opens TensorBoard, and what did not finish."""

    def __init__(self) -> None:
        self._before: dict[Path, object] = {}

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        self._before = {job.folder: job.state for job in unfinished_jobs(_folder(config))}

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Raises SystemExit(1) where a job of this command did not finish, even if the table cannot be written."""
        error, folder = sys.exc_info()[1], _folder(config)
        failed: list[Job] | None = None
        with reporting_failure("The jobs could not be counted"):
            failed = [job for job in unfinished_jobs(folder) if self._before.get(job.folder) != job.state]
        with reporting_failure("The table could not be made"):
            show_runs(config, folder)
        if failed or (error and has_runs(folder)):
            with reporting_failure("The jobs that failed could not be named"):
                sys.stdout.flush()
                lines = "".join(map(str, failed or ()))
                sys.stderr.write(
                    printable(f"\n{lines}\nRun what is not finished:\n  {command_to_go_on(config)}\n", lines=True)
                )
        if failed != [] and not error:  # Hydra would turn any other exception into a warning
            raise SystemExit(1)


@dataclass(frozen=True)
class Job:
    """A job that did not finish, or does not say how it ended.

    Attributes:
        folder: its own.
        state: another one after the job was run again.
        status: "failed", "interrupted" or "unknown".
        overrides: in what it differs from the others.
        reason: the first line of it.
    """

    folder: Path
    state: object
    status: str
    overrides: str
    reason: str

    def __str__(self) -> str:
        return f"{self.status}  {self.folder}  {self.overrides}".rstrip() + f"\n    {self.reason}".rstrip() + "\n"


def unfinished_jobs(sweep: Path) -> list[Job]:
    """The jobs below `sweep` that failed, were interrupted, or whose summaries cannot be read."""
    runs, unreadable = find_summaries(sweep)
    common = set[str].intersection(*(set(run.overrides) for run in runs)) if runs else set()
    jobs = []
    for run in runs:
        if run.unfinished:
            own = " ".join(word for word in run.overrides if word not in common)
            reason = next(iter(run.error.strip().splitlines()), "")
            jobs.append(Job(run.folder, run.attempts, run.status, own, reason))
    for each in unreadable:
        with contextlib.suppress(OSError):  # gone by now
            state = each.file.lstat()
            jobs.append(Job(each.file.parent, (state.st_size, state.st_mtime_ns), "unknown", "", str(each)))
    return jobs


def has_runs(folder: Path) -> bool:
    """Whether any run below `folder` has a summary."""
    return next(folder.rglob(FILE), None) is not None


def show_runs(config: Any, folder: Path) -> None:
    """The table of a sweep, its files, and how to look closer."""
    if not has_runs(folder):
        return
    from graft.tasks.compare import show

    show(folder)
    say(f"\nLook at the runs:  tensorboard --logdir {folder}")
    if config.search.storage:
        say(f"and at the search:  optuna-dashboard {config.search.storage}")


@contextlib.contextmanager
def reporting_failure(what: str) -> Iterator[None]:
    """Write an exception inside to stderr instead of raising it."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, GraftError) else traceback.format_exc()
        sys.stderr.write(printable(f"{what}: {reason}\n", lines=True))


def _folder(config: Any) -> Path:
    return Path(config.hydra.sweep.dir)


def command_to_go_on(config: Any) -> str:
    """The command that takes the sweep of `config` up again, in its folder."""
    hydra = config.hydra
    own = [word for word in hydra.overrides.hydra if not word.startswith("hydra.mode=")]
    task = [word for word in hydra.overrides.task if not word.startswith("sweep_name=")]
    named = [] if any(word.startswith("hydra.sweep.dir=") for word in own) else [f"sweep_name={config.sweep_name}"]
    return shlex.join(["graft", "train", "-m", *own, *task, *named])


def _job_folder(wanted: int, *, _root_: DictConfig) -> str:
    return job_folder(Path(_root_.hydra.sweep.dir), wanted, config_hash(typed(_root_, TrainConfig)))


def _run_name(strategy: str, moment: str) -> str:
    """One name for the tasks of a step, which begin at different moments, and for the job that is queued again."""
    tasks = slurm_tasks()
    return f"slurm_{tasks.step}" if strategy == "ddp_slurm" and tasks else moment


def _jobs_at_once() -> int:
    from graft.sweep.gpu_slots import jobs_at_once  # asked for only where jobs run side by side

    return jobs_at_once()


def _gpus_per_job() -> int:
    from graft.system.gpu import visible_gpus

    return min(1, len(visible_gpus()))


def register() -> None:
    """Make known to Hydra what the configurations of sweeps name: resolvers, and our form of its Optuna sweeper."""
    OmegaConf.register_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_resolver("job_folder", _job_folder, replace=True)
    OmegaConf.register_resolver("jobs_at_once", _jobs_at_once, replace=True)
    OmegaConf.register_resolver("gpus_per_job", _gpus_per_job, replace=True)
    OmegaConf.register_resolver("direction", lambda metric: f"{direction(metric)}imize", replace=True)
    Plugins.instance().register(Grid)
    with contextlib.suppress(ImportError):  # the extra `sweep` is not installed
        from graft.sweep.optuna_sweeper import Search

        Plugins.instance().register(Search)


register()  # here too: a launcher's other processes import this module with their callbacks
