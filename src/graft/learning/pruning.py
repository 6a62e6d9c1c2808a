"""Reports the metric of a trial to its Optuna study and decides whether the trial should stop early.

Imports no torch: the process that runs a sweep uses it too.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from graft.errors import ConfigError, pip_install
from graft.system.compat import open_trial

PRUNED = "pruned"
"""User attribute of a trial that was stopped early, and status of its run."""


def open_storage(url: str) -> Any:
    """Open the Optuna storage at `url`.

    Args:
        url: a journal file, "journal:///FILE" (for file systems shared by several machines), "redis://…", or a
            database as SQLAlchemy names it, "sqlite:///FILE", "postgresql://…".

    Raises:
        ConfigError: Optuna is not installed, or the storage cannot be opened.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage, RDBStorage, journal
    except ImportError as error:
        raise ConfigError(f"A search needs Optuna ({error}): {pip_install('sweep')}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scheme, _, path = url.partition("://")
    if scheme in ("journal", "sqlite") and path.strip("/"):
        Path(path[1:]).parent.mkdir(parents=True, exist_ok=True)
    try:
        if scheme == "journal":
            backend: Any = journal.JournalFileBackend(path[1:], journal.JournalFileOpenLock(path[1:]))
            return JournalStorage(backend)
        if scheme == "redis":
            return JournalStorage(journal.JournalRedisBackend(url))
        # concurrent writers wait for each other
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 120}} if scheme == "sqlite" else None)
    except Exception as error:  # any error of the database driver
        raise ConfigError(f"search.storage={url}: cannot be opened ({type(error).__name__}: {error}).") from error


def build_pruner(search: Any, epochs: int) -> Any:
    """The Optuna pruner that `search` (a SearchConfig) names, for runs of at most `epochs` epochs."""
    from optuna import pruners

    start = {"n_startup_trials": search.startup_trials, "n_warmup_steps": search.warmup_epochs}
    rungs = {"min_resource": max(1, search.warmup_epochs), "reduction_factor": search.reduction_factor}
    known: dict[str, Callable[[], Any]] = {
        "none": pruners.NopPruner,
        "median": partial(pruners.MedianPruner, **start),
        "percentile": partial(pruners.PercentilePruner, search.percentile, **start),
        "halving": partial(pruners.SuccessiveHalvingPruner, **rungs),
        "hyperband": partial(pruners.HyperbandPruner, max_resource=max(epochs, rungs["min_resource"]), **rungs),
    }
    return known[search.pruner]()


class TrialReporter:
    """Reports the metric of a trial to its study and asks the pruner whether to stop.

    Args:
        search: a SearchConfig with storage, study and trial.
        epochs: maximum epochs of a run of the search.
    """

    def __init__(self, search: Any, epochs: int) -> None:
        self._trial = _open_trial(search)
        self._trial.study.pruner = build_pruner(search, epochs)
        self._reported = set(self._trial.study.get_trials(deepcopy=False)[search.trial].intermediate_values)

    def should_prune(self, value: float, epoch: int) -> bool:
        """Whether the run should stop, given its metric `value` after epoch `epoch` (from 0)."""
        if epoch not in self._reported:  # a repeated trial has the values of the interrupted one
            self._trial.report(value, epoch)
        return bool(self._trial.should_prune())


def mark_pruned(search: Any) -> None:
    """Mark the trial as pruned; the sweeper then records it as such."""
    _open_trial(search).set_user_attr(PRUNED, True)


def _open_trial(search: Any) -> Any:
    import optuna

    # Nothing is sampled here, so the sampler of the search is not needed.
    storage, sampler = open_storage(search.storage), optuna.samplers.RandomSampler()
    study = optuna.load_study(study_name=search.study, storage=storage, sampler=sampler)
    return open_trial(study, search.trial)
