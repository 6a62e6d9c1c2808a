"""One job of a sweep: runs in the folder of its configuration, in a subprocess, unless it is finished."""

import copy
import logging
import logging.config
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from graft.config.config_hash import config_hash
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.errors import GraftError
from graft.learning.pruning import PRUNED, mark_pruned
from graft.sweep.gpu_slots import Slot, claimed_slot, concurrent_jobs
from graft.sweep.job_folders import INDEX
from graft.sweep.subprocess_job import run_in_subprocess
from graft.system.folder_lock import FolderLock
from graft.system.locks import locked
from graft.system.slurm import first_task
from graft.tasks.prepare import KEY
from graft.tasks.run import earlier_run
from graft.tasks.train import Command, open_run, train

log = logging.getLogger("graft")

DONE = ("finished", PRUNED)
"""Statuses of jobs that are not run again."""


def main(config: DictConfig) -> float | None:
    """Run one job of a sweep, composed by Hydra; returns its optimized metric to the sweeper."""
    return run_job(typed(config, TrainConfig), HydraConfig.get())


def run_job(cfg: TrainConfig, hydra: Any) -> float | None:
    """Run a job unless it is finished; an error is recorded in its summary and stops no other job.

    Args:
        cfg: its configuration.
        hydra: its HydraConfig.

    Returns:
        The optimized metric (of a pruned job: its best so far); None if the job failed.
    """
    folder, sweep, configuration = Path(hydra.runtime.output_dir), Path(hydra.sweep.dir), config_hash(cfg)
    overrides, picked = list(hydra.overrides.task), dict(hydra.runtime.choices)
    command = Command(folder, overrides, picked, in_sweep=True, swept=swept_keys(sweep, hydra.sweeper))
    with _exclusively(sweep / INDEX / f"{configuration}.lock") if first_task() else nullcontext():
        summary = earlier_run(folder, configuration)
        if summary.get("status") in DONE:
            log.info("already %s: %s", summary["status"], folder)
        else:
            cfg = copy.deepcopy(cfg)
            if (summary or not first_task()) and cfg.resume is None:
                cfg.resume = "auto"
            with ExitStack() as stack:
                try:
                    stack.enter_context(FolderLock(folder, KEY) if first_task() else nullcontext())
                except GraftError as error:  # another command resumes this job
                    log.error("%s", error)
                    return None
                slot = stack.enter_context(claimed_slot(concurrent_jobs(hydra.launcher), sweep))
                summary = _run_in_subprocess(
                    cfg, command, slot, OmegaConf.to_container(hydra.job_logging, resolve=True)
                )
    if summary["status"] == PRUNED and cfg.search.trial is not None:
        mark_pruned(cfg.search)
    metric = summary.get("config", {}).get("optimized_metric", cfg.optimized_metric)  # the data may have decided it
    return summary["metrics"].get(metric) if summary["status"] in DONE else None


def swept_keys(sweep: Path, sweeper: Any) -> tuple[str, ...]:
    """The keys that a sweep varies: of its command, which Hydra has written to multirun.yaml, and of its search space.

    Args:
        sweep: folder of the sweep.
        sweeper: Hydra's configuration of the sweeper, of which `params` is read.
    """
    words: list[str] = []
    with suppress(OSError, OmegaConfBaseException):
        words = list(OmegaConf.load(sweep / "multirun.yaml").hydra.overrides.task)
    parsed = OverridesParser.create().parse_overrides(words)
    keys = [override.key_or_group for override in parsed if override.is_sweep_override()]
    return tuple(dict.fromkeys([*keys, *map(str, getattr(sweeper, "params", None) or {})]))


@contextmanager
def _exclusively(lock_file: Path) -> Iterator[None]:
    """Run two jobs of the same configuration, or of a sweep that was started twice, one after the other."""
    with locked(lock_file, lambda holder: log.info("waiting for %s, which runs the same configuration", holder)):
        yield


def _run_in_subprocess(cfg: TrainConfig, command: Command, slot: Slot, job_logging: Any) -> dict[str, Any]:
    """Run the job, from its last checkpoint if there is one; returns its summary, with how it ended."""
    run = open_run(cfg, command)
    code = run_in_subprocess(_train, cfg, command, slot, job_logging, preload=("graft.tasks.fit",))
    summary = earlier_run(command.folder, run.summary["identity"])
    if not run.writes:  # the first Slurm task writes the summary
        return summary or run.summary
    if summary.get("attempts") == run.summary["attempts"]:
        run.summary = summary
    if "ended" not in run.summary:  # killed before it could record why
        run.fail(_cause_of_death(code))
    if run.summary["status"] not in DONE:
        log.error("%s: %s", run.summary["status"], run.summary.get("error", command.folder))
    return run.summary


def _cause_of_death(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code} (see train.log)"
    likely = ", which is what the system sends when memory runs out" if -code == signal.SIGKILL else ""
    return f"the process was killed by {signal.Signals(-code).name}{likely}"


def _train(cfg: TrainConfig, command: Command, slot: Slot, job_logging: dict[str, Any]) -> None:
    if first_task():
        logging.config.dictConfig(job_logging)
    slot.bind()
    try:
        train(cfg, command)
    except GraftError:  # recorded in the summary; the parent logs it
        sys.exit(1)
    except Exception:
        log.exception("failed")
        sys.exit(1)
