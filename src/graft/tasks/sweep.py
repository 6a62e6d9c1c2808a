"""What precedes the first job of a sweep and what follows the last."""

import contextlib
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from graft.config.identity import identity
from graft.config.metrics import direction
from graft.slurm import slurm_tasks
from graft.tasks.folders import job_folder
from graft.tasks.grid import Grid


class ShowComparison(Callback):
    """Ends a multirun with its table, the line that opens TensorBoard, and what did not finish."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        self._before = {run["folder"]: _attempts(run) for run in _runs(_folder(config)) if _unfinished(run)}

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        """Raises SystemExit(1) where a job of this command did not finish."""
        error, folder = sys.exc_info()[1], _folder(config)
        runs = _runs(folder)
        if runs:
            from graft.tasks.compare import show

            search = config.search.storage  # ranking its trials by the test set would choose by the test set
            show(folder, sort="test/acc" if config.trainer.test and not search else config.optimized_metric)
            print(f"\nLook at the runs:  tensorboard --logdir {folder}")
            if search:
                print(f"and at the search:  optuna-dashboard {search}")
        failed = [run for run in runs if _unfinished(run) and self._before.get(run["folder"]) != _attempts(run)]
        if failed or (error and runs):
            sys.stdout.flush()
            told = "".join(_told(run, runs) for run in failed)
            sys.stderr.write(f"\n{told}\nRun what is not finished:\n  {command_to_go_on(config)}\n")
        if failed and not error:
            raise SystemExit(1)


def _folder(config: Any) -> Path:
    return Path(config.hydra.sweep.dir)


def _attempts(summary: dict[str, Any]) -> int:
    return int(summary.get("attempts", 0))


def _runs(folder: Path) -> list[dict[str, Any]]:
    from graft.review.comparison import read_summaries

    return read_summaries(folder)


def _unfinished(run: dict[str, Any]) -> bool:
    return run["status"] in ("failed", "interrupted")


def _told(run: dict[str, Any], runs: Iterable[dict[str, Any]]) -> str:
    """What became of a run, in what it differs from the others, and the first line of the reason."""
    common = set.intersection(*(set(other.get("overrides", ())) for other in runs))
    own = " ".join(word for word in run.get("overrides", ()) if word not in common)
    reason = str(run.get("error", "")).strip().splitlines()
    return f"{run['status']}  {run['folder']}  {own}".rstrip() + (f"\n    {reason[0]}\n" if reason else "\n")


def command_to_go_on(config: Any) -> str:
    """The command that takes the sweep of `config` up again, in its folder."""
    hydra = config.hydra
    own = [word for word in hydra.overrides.hydra if not word.startswith("hydra.mode=")]
    task = [word for word in hydra.overrides.task if not word.startswith("sweep_name=")]
    named = [] if any(word.startswith("hydra.sweep.dir=") for word in own) else [f"sweep_name={config.sweep_name}"]
    return shlex.join(["graft", "train", "-m", *own, *task, *named])


def _job_folder(wanted: int, *, _root_: DictConfig) -> str:
    return job_folder(Path(_root_.hydra.sweep.dir), wanted, identity(_root_))


def _run_name(strategy: str, moment: str) -> str:
    """One name for the tasks of a step, which begin at different moments, and for the job that is queued again."""
    tasks = slurm_tasks()
    return f"slurm_{tasks.step}" if strategy == "ddp_slurm" and tasks else moment


def _jobs_at_once() -> int:
    from graft.tasks.places import jobs_at_once  # asked for only where jobs run side by side

    return jobs_at_once()


def _gpus_per_job() -> int:
    from graft.learning.gpu import visible_gpus

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
        from graft.tasks.sweeper import Search

        Plugins.instance().register(Search)


register()  # here too: a launcher's other processes import this module with their callbacks
