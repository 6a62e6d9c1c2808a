"""Prepares a run: checks its configuration and claims its folder before anything is written."""

import contextlib
import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.errors import ConfigError
from graft.learning.checkpoints import BEST, LAST, PREVIOUS, replace_damaged_checkpoint, resume_point
from graft.system.files import is_within
from graft.system.folder_lock import FolderLock, new_folder
from graft.system.gpu import require_gpu
from graft.system.locks import locked
from graft.system.slurm import first_task
from graft.system.startup import garbage_collection_paused
from graft.tasks.checks import settle
from graft.tasks.resume import LEFT_BY_A_RUN, Resumption, open_resumption
from graft.tasks.run import read_summary

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from graft.data.splits import Splits

log = logging.getLogger("graft")

KEY = "hydra.run.dir"

DONE = ("finished", "pruned")


@dataclass
class PreparedRun:
    """A run that may start; a context manager that releases its folder at the end.

    Attributes:
        folder: of the run, claimed.
        resumption: the checkpoint that it resumes from, which fits the configuration; None for a new run.
        splits: its data, if they were read to compare them with the checkpoint's; else None.
        lock: of the folder; None in all Slurm tasks but the first.
    """

    folder: Path
    resumption: Resumption | None
    splits: "Splits | None"
    lock: FolderLock | None

    def __enter__(self) -> "PreparedRun":
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.release()


def prepare(config: TrainConfig, overrides: Sequence[str], folder: Path, *, generated_name: bool) -> PreparedRun:
    """Check a run's configuration, claim its folder, and compare it with what it resumes from.

    Slurm tasks of one job share the folder: the first claims it, all of them check.

    Args:
        config: of the run; not changed.
        overrides: of the command line.
        folder: the run's folder.
        generated_name: Graft has made up the folder's name, so a suffix is added if it exists.

    Raises:
        ConfigError: the configuration is invalid or differs from the checkpoint's in a key that cannot change, or the
            folder is in use or holds another run.
        DataError, TrainingError: the data or the checkpoint do not fit.
    """
    config = copy.deepcopy(config)
    resume_when_queued_again(config)
    settle(config, overrides)
    require_gpu(config.trainer.accelerator)
    if config.resume not in (None, "auto"):
        resume_point(config.resume, folder)  # a path that does not exist is refused before a folder is made
    if generated_name:
        folder = new_folder(folder)
    existed = folder.is_dir() and not generated_name
    lock = FolderLock(folder, KEY) if first_task() else None
    try:
        if lock is not None:
            lock.acquire()
        refuse_reuse(folder, config.resume)
        resumption = find_resumption(config, overrides, folder)
        splits = None
        if resumption is not None:
            from graft.tasks.data import available_data  # imports NumPy

            splits = available_data(config)
            resumption.require_data(splits)
        return PreparedRun(folder, resumption, splits, lock)
    except BaseException:
        if lock is not None:
            lock.release()
        if not existed:
            with contextlib.suppress(OSError):
                folder.rmdir()  # which fails unless it is empty
        raise


def resume_when_queued_again(config: TrainConfig) -> None:
    """Set resume=auto in a Slurm job of several tasks: its folder is that of the job, which may have been requeued."""
    if config.trainer.strategy == "ddp_slurm" and config.resume is None:
        config.resume = "auto"


def find_resumption(config: TrainConfig, overrides: Sequence[str], folder: Path) -> Resumption | None:
    """The checkpoint that `resume` names, compared with a settled configuration; None for a new run.

    If last.ckpt of the run's own folder is damaged, the checkpoint before it replaces it, with a note.
    """
    note = None
    if config.resume == "auto":
        with _one_task_at_a_time(config, folder):
            note = replace_damaged_checkpoint(folder)
    checkpoint = resume_point(config.resume, folder)
    if checkpoint is None:
        return None
    with garbage_collection_paused():  # reading the checkpoint imports torch
        resumption = open_resumption(config, checkpoint, overrides)
    return resumption.with_note(note) if note else resumption


def _one_task_at_a_time(config: TrainConfig, folder: Path) -> contextlib.AbstractContextManager[Any]:
    """A lock for Slurm tasks, which share a folder: one replaces a damaged checkpoint before the others read it."""
    if config.trainer.strategy != "ddp_slurm":
        return contextlib.nullcontext()
    return locked(folder / ".tasks.lock", lambda holder: log.info("waiting for %s, a task of this run", holder))


def refuse_reuse(folder: Path, resume: str | None) -> None:
    """Refuse a folder that holds a run other than the one to resume, or files that are not of a run.

    Raises:
        ConfigError: names the folder, its content and the way out.
    """
    summary, where = read_summary(folder), f"{KEY}={folder}"
    kept = [name for name in (LAST, PREVIOUS, BEST) if (folder / "checkpoints" / name).is_file()]
    status = summary.get("status")
    inside = resume == "auto" or (resume is not None and is_within(Path(resume), folder))
    if inside and (LAST in kept or PREVIOUS in kept):
        return
    if status in DONE:
        raise ConfigError(
            f"{where}: holds a {status} run"
            + (f" that has kept no {LAST} to resume from (callbacks.keep)" if inside else "")
            + ".\nGive another folder"
            + (", or continue it: resume=auto with a larger trainer.max_epochs." if LAST in kept else ".")
        )
    if kept and not (resume == "auto" and status is not None):
        resumable = LAST in kept or PREVIOUS in kept
        raise ConfigError(
            f"{where}: holds {' and '.join(kept)} of {f'a run that was {status}' if status else 'a run'}.\n"
            + (f"resume=auto continues it there, and resume={folder} in another folder. " if resumable else "")
            + "To start from the beginning, give another folder, or remove this one."
        )
    patterns = ("summary.json", *LEFT_BY_A_RUN) if status is None else ()
    found = [file.name for pattern in patterns for file in folder.glob(pattern)]
    if found:
        raise ConfigError(
            f"{where}: holds {', '.join(found)} and no run of Graft, which would write files of these names.\n"
            "Give another folder."
        )


_CLAIMED: list[PreparedRun] = []
"""The run that Hydra's callback has prepared for the task, in this process."""


def claim(config: "DictConfig", folder: Path, generated_name: bool) -> Path:
    """Prepare the run of `config`, which has a `hydra` node, before Hydra writes to its folder; returns the folder."""
    cfg = typed(config, TrainConfig)
    generated_name = generated_name and cfg.trainer.strategy != "ddp_slurm"  # several tasks share that name
    prepared = prepare(cfg, list(config.hydra.overrides.task), folder, generated_name=generated_name)
    _CLAIMED[:] = [prepared]
    return prepared.folder


def claimed() -> PreparedRun | None:
    """Take the run that `claim` has prepared in this process; None without one, and in later calls."""
    return _CLAIMED.pop() if _CLAIMED else None
