"""A job's side of a search: how it does is told to the study, and whether it is worth going on is asked there."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from graft.errors import ConfigError, pip_install

PRUNED = "pruned"
"""The attribute of a trial that was stopped early, and the status of its run."""


def open_storage(url: str) -> Any:
    """Optuna's storage at `url`.

    Args:
        url: a journal file, "journal:///FILE" (for file systems shared by several machines), "redis://…", or a
            database as SQLAlchemy names it, "sqlite:///FILE", "postgresql://…".

    Raises:
        ConfigError: Optuna is not installed, or nothing can be opened there.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage, RDBStorage, journal
    except ImportError as error:
        raise ConfigError(f"A search needs Optuna ({error}): {pip_install('sweep')}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    scheme, _, place = url.partition("://")
    if scheme in ("journal", "sqlite") and place.strip("/"):
        Path(place[1:]).parent.mkdir(parents=True, exist_ok=True)
    try:
        if scheme == "journal":
            backend: Any = journal.JournalFileBackend(place[1:], journal.JournalFileOpenLock(place[1:]))
            return JournalStorage(backend)
        if scheme == "redis":
            return JournalStorage(journal.JournalRedisBackend(url))
        # jobs that write at the same time wait for each other
        return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 120}} if scheme == "sqlite" else None)
    except Exception as error:  # whatever the database's driver raises
        raise ConfigError(f"search.storage={url}: cannot be opened ({type(error).__name__}: {error}).") from error


def build_pruner(search: Any, epochs: int) -> Any:
    """The Optuna pruner that `search` (a SearchConfig) names, for runs of at most `epochs` epochs."""
    from optuna import pruners

    begin = {"n_startup_trials": search.startup_trials, "n_warmup_steps": search.warmup_epochs}
    rungs = {"min_resource": max(1, search.warmup_epochs), "reduction_factor": search.reduction_factor}
    known: dict[str, Callable[[], Any]] = {
        "none": pruners.NopPruner,
        "median": partial(pruners.MedianPruner, **begin),
        "percentile": partial(pruners.PercentilePruner, search.percentile, **begin),
        "halving": partial(pruners.SuccessiveHalvingPruner, **rungs),
        "hyperband": partial(pruners.HyperbandPruner, max_resource=max(epochs, rungs["min_resource"]), **rungs),
    }
    return known[search.pruner]()


class Judge:
    """Tells a trial's figures to its study and asks the pruner about them.

    Args:
        search: a SearchConfig with storage, study and trial.
        epochs: the most that a run of the search takes.
    """

    def __init__(self, search: Any, epochs: int) -> None:
        self._trial = _open_trial(search)
        self._trial.study.pruner = build_pruner(search, epochs)
        self._told = set(self._trial.study.get_trials(deepcopy=False)[search.trial].intermediate_values)

    def hopeless(self, value: float, epoch: int) -> bool:
        """Should the run stop, now that its metric is `value` after epoch `epoch` (from 0)?"""
        if epoch not in self._told:  # an interrupted trial inherits what it had told before
            self._trial.report(value, epoch)
        return bool(self._trial.should_prune())


def mark_pruned(search: Any) -> None:
    """Have the sweeper, which knows only complete and failed trials, tell its study that this one was pruned."""
    _open_trial(search).set_user_attr(PRUNED, True)


def _open_trial(search: Any) -> Any:
    import optuna

    # Nothing is sampled here, whatever the search's own sampler is.
    storage, sampler = open_storage(search.storage), optuna.samplers.RandomSampler()
    study = optuna.load_study(study_name=search.study, storage=storage, sampler=sampler)
    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[search.trial]._trial_id)
