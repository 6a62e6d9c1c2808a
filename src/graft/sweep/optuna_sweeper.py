"""Hydra's own Optuna sweeper, taken up again where it was stopped, and with trials that may end early."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import OmegaConf

from graft.errors import ConfigError
from graft.learning.pruning import PRUNED, build_pruner, open_storage
from graft.seeding import seed_of
from graft.sweep.grid import require_gpu_for_jobs
from graft.sweep.job_folders import INDEX, restore_index

log = logging.getLogger(__name__)

OWN_SEQUENCE = ("GridSampler", "QMCSampler", "CmaEsSampler")
"""Samplers that go through a sequence of their own, kept in the study: a new seed for each trial would spoil it."""

REPEATS = "failed_trial"
"""The attribute, as Optuna's own retries have it, of a trial that repeats another: its number."""


class Search(OptunaSweeper):
    """Counts the study's finished trials against `n_trials`, and takes up those that were under way when it died.

    The keys are those of Hydra's Optuna sweeper; what a trial does itself is under `search` in the configuration.
    """

    def __init__(self, sampler: Any, **keys: Any) -> None:
        super().__init__(sampler, **keys)
        from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl

        self._sampler: dict[str, Any] = OmegaConf.to_container(sampler, resolve=True)  # type: ignore[assignment]
        self._url, self._n_trials = self.sweeper.storage, self.sweeper.n_trials
        configure: Any = partial(OptunaSweeperImpl._configure_trials, self.sweeper)
        self.sweeper._configure_trials = partial(self._configure_trials, configure)  # type: ignore[method-assign]

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._config, self._loader = config, hydra_context.config_loader

    def sweep(self, arguments: list[str]) -> None:
        """Search until the study has `n_trials` finished trials.

        Raises:
            ConfigError: another process is at the same search; its trials want a GPU, and this machine has none; or it
                would choose by the test images.
        """
        require_gpu_for_jobs(self._config, [()], self._loader)
        if self._config.optimized_metric.startswith("test/"):
            raise ConfigError(
                f"optimized_metric={self._config.optimized_metric}: a search would choose by the test images.\n"
                "Use optimized_metric=val/acc or val/loss; each trial is tested all the same."
            )
        lock = Path(self._config.hydra.sweep.dir) / INDEX / "search.lock"
        restore_index(lock.parent.parent)
        try:
            with FileLock(lock, timeout=0):
                self._sweep(arguments)
        except Timeout:
            raise ConfigError(
                f"sweep_name={self._config.sweep_name}: another process is at this search.\n"
                "Wait for it, end it, or give another sweep_name."
            ) from None

    def _sweep(self, arguments: list[str]) -> None:
        import optuna

        self.sweeper.storage = open_storage(str(self._url))
        study = optuna.create_study(
            study_name=self.sweeper.study_name,
            storage=self.sweeper.storage,
            directions=self.sweeper._get_directions(),  # type: ignore[arg-type]
            load_if_exists=True,
        )
        self._take_up(study)
        finished = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False))
        self.sweeper.n_trials = max(0, self._n_trials - finished)
        log.info("%d of %d trials are finished; %d to go", finished, self._n_trials, self.sweeper.n_trials)
        try:
            super().sweep(arguments)
        except ValueError:
            if any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False)):
                raise
            log.error("No trial was completed.")  # Optuna has no best trial to name; each says why in its folder

    def _take_up(self, study: Any) -> None:
        """Queue again, with all they had told, the trials that were under way when the search died.

        The same parameters lead to the same job folder, where the run goes on from its last checkpoint.
        """
        from optuna.trial import TrialState, create_trial

        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            pruned = PRUNED in trial.user_attrs
            study.tell(trial.number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
            if trial.params and not pruned:
                again = create_trial(
                    state=TrialState.WAITING,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=trial.user_attrs,
                    system_attrs={REPEATS: trial.number, **trial.system_attrs},
                    intermediate_values=trial.intermediate_values,
                )
                study.add_trial(again)

    def _configure_trials(self, configure: Any, trials: list[Any], *space: Any) -> Sequence[Sequence[str]]:
        """The overrides of each trial's job, its number among them."""
        overrides = []
        for trial in trials:
            study = trial.study
            study.pruner = build_pruner(self._config.search, self._config.trainer.max_epochs)
            study.sampler = self._sampler_of(trial) or study.sampler
            study.tell = partial(_tell, study)
            (chosen,) = configure([trial], *space)
            overrides.append((*chosen, f"search.trial={trial.number}"))
        return overrides

    def _sampler_of(self, trial: Any) -> Any | None:
        """A sampler whose chance is a function of the seed and of how many trials came before, so that a search that
        was stopped goes on as if it had not been; None for one that goes through a sequence of its own."""
        seed, name = self._sampler.get("seed"), self._sampler["_target_"].rpartition(".")[2]
        if seed is None or name in OWN_SEQUENCE:
            return None
        *before, this = [_first_number(each) for each in trial.study.get_trials(deepcopy=False)[: trial.number + 1]]
        mine = len(set(before) - {this})
        return instantiate(
            self._sampler | {"seed": seed_of(seed, "search", mine) % 2**32},
            _execution_whitelist_=("hydra_plugins.hydra_optuna_sweeper.*", "optuna.samplers.*"),
        )


def _first_number(trial: Any) -> int:
    """The number of a trial, or of the one that it repeats."""
    attributes: Mapping[str, Any] = trial.system_attrs
    return int(attributes.get(REPEATS, trial.number))


def _tell(study: Any, trial: Any, values: Any = None, state: Any = None, **options: Any) -> Any:
    """Study.tell, but what Hydra takes for complete and was stopped early becomes pruned."""
    import optuna

    if state == optuna.trial.TrialState.COMPLETE and study.get_trials(deepcopy=False)[trial.number].user_attrs.get(
        PRUNED
    ):
        values, state = None, optuna.trial.TrialState.PRUNED
    return optuna.Study.tell(study, trial, values, state, **options)
