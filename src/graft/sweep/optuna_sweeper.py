"""Hydra sweeper that searches with Optuna (ask and tell) and resumes a search that was stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from graft.config.targets import accepts, bind, build, check_target, short_name
from graft.errors import ConfigError, TrainingError
from graft.learning.pruning import PRUNED, build_pruner, open_storage
from graft.seeding import seed_of
from graft.sweep.gpu_slots import worker_count
from graft.sweep.grid import require_gpu_for_jobs
from graft.sweep.job_folders import INDEX, restore_index
from graft.sweep.search_space import SearchSpace

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger(__name__)

SAMPLER = "hydra.sweeper.sampler"

STATEFUL_SAMPLERS = ("GridSampler", "QMCSampler", "CmaEsSampler")
"""Samplers that read their position in a sequence from the study: a new seed per trial would restart it."""

REPEATS = "failed_trial"
"""System attribute with the number of the trial that a trial repeats; Optuna's own retries use the same."""


class OptunaSweeper(Sweeper):
    """Searches until the study has `n_trials` finished trials, those of earlier commands included.

    Keys and spelling are those of Hydra's Optuna plugin; pruning is configured under `search`.

    Args:
        sampler: the Optuna sampler by `_target_`, with its arguments.
        direction: "minimize" or "maximize".
        storage: URL of the study (see `open_storage`).
        study_name: name of the study in its storage.
        n_trials: finished trials after which the search ends.
        n_jobs: trials per batch, which the launcher may run in parallel; negative as in joblib.
        max_failure_rate: the search stops when a larger part of a batch fails, in [0, 1].
        custom_search_space: dotted path of a function of (config, trial) that suggests more parameters.
        params: sweeps from the configuration; those of the command line come after them.
    """

    def __init__(
        self,
        sampler: DictConfig,
        direction: str,
        storage: str | None,
        study_name: str | None,
        n_trials: int,
        n_jobs: int,
        max_failure_rate: float = 1.0,
        custom_search_space: str | None = None,
        params: DictConfig | None = None,
    ) -> None:
        if not 0 <= max_failure_rate <= 1:
            raise ConfigError(f"hydra.sweeper.max_failure_rate={max_failure_rate}: must be in [0, 1].")
        if direction not in ("minimize", "maximize"):
            raise ConfigError(f"hydra.sweeper.direction={direction}: must be minimize or maximize.")
        self.sampler: dict[str, Any] = OmegaConf.to_container(sampler, resolve=True)  # type: ignore[assignment]
        self.direction, self.storage, self.study_name = direction, storage, study_name
        self.n_trials, self.n_jobs = n_trials, worker_count(n_jobs)
        self.max_failure_rate = max_failure_rate
        self.custom_search_space = custom_search_space
        self.params: Mapping[Any, Any] = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search until the study has `n_trials` finished trials.

        Raises:
            ConfigError: another process runs the same search; its trials need a GPU and this machine has none; it
                would optimize a metric of the test images; or its storage or sampler cannot be used.
            TrainingError: more trials of a batch failed than `max_failure_rate` allows.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        require_gpu_for_jobs(self.config, [()], loader)
        metric = self.config.optimized_metric
        if metric.startswith("test/"):
            raise ConfigError(
                f"optimized_metric={metric}: a search would choose by the test images.\n"
                "Use optimized_metric=val/acc or val/loss; each trial is tested all the same."
            )
        if self.storage is None:
            raise ConfigError("search.storage=null: a search needs a storage. Choose sweep=optuna, or set it.")
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        folder = Path(self.config.hydra.sweep.dir)
        restore_index(folder)
        try:
            with FileLock(folder / INDEX / "search.lock", timeout=0):
                storage = open_storage(self.storage)
                check_target(SAMPLER, self.sampler, supplied=["search_space"])
                space = SearchSpace.of(OverridesParser.create(config_loader=loader).parse_overrides(words))
                self._search(storage, space, folder)
        except Timeout:
            raise ConfigError(
                f"sweep_name={self.config.sweep_name}: another process runs this search.\n"
                "Wait for it, stop it, or set another sweep_name."
            ) from None

    def _search(self, storage: Any, space: SearchSpace, folder: Path) -> None:
        import optuna

        assert self.config is not None
        assert self.launcher is not None
        total = self.n_trials
        if accepts(self.sampler["_target_"], "search_space"):  # a sampler of all combinations
            self.sampler["search_space"] = space.grid()
            total = min(total, math.prod(len(values) for values in space.grid().values()))
        study = optuna.create_study(
            study_name=self.study_name,
            storage=storage,
            sampler=build(SAMPLER, self.sampler),
            pruner=build_pruner(self.config.search, self.config.trainer.max_epochs),
            direction=self.direction,  # type: ignore[arg-type]
            load_if_exists=True,
        )
        requeue_interrupted(study)
        finished = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.get_trials(deepcopy=False))
        log.info("%d of %d trials are finished; %d to go", finished, total, max(0, total - finished))
        launched, stopped = 0, False
        while launched < total - finished and not stopped:
            batch = [self._ask(study, space) for _ in range(min(self.n_jobs, total - finished - launched))]
            jobs = [(*space.overrides(trial.params), f"search.trial={trial.number}") for trial in batch]
            results = self.launcher.launch(jobs, initial_job_idx=launched)
            stopped = self._tell(study, batch, results)
            launched += len(batch)
        save_best(study, folder)

    def _ask(self, study: Study, space: SearchSpace) -> Trial:
        """The next trial, with a value for each searched key."""
        seed = self.sampler.get("seed")
        if seed is not None and short_name(self.sampler["_target_"]) not in STATEFUL_SAMPLERS:
            # A function of the seed and of the trials before, so that a resumed search continues as if uninterrupted.
            earlier = len({_original_number(trial) for trial in study.get_trials(deepcopy=False)})
            study.sampler = build(SAMPLER, self.sampler | {"seed": seed_of(seed, "search", earlier) % 2**32})
        trial = study.ask(fixed_distributions=space.distributions)
        for key, value in space.fixed.items():
            trial.set_user_attr(key, value)
        if self.custom_search_space:
            bind("hydra.sweeper.custom_search_space", {"_target_": self.custom_search_space})(self.config, trial)
        if both := sorted(trial.params.keys() & space.fixed.keys()):
            raise ConfigError(f"{self.custom_search_space} suggests {', '.join(both)}, which the command line sets.")
        return trial

    def _tell(self, study: Study, batch: Sequence[Trial], results: Sequence[JobReturn]) -> bool:
        """Record how the trials of a batch ended; returns whether the sampler has nothing left to try.

        Raises:
            TrainingError: more of them failed than `max_failure_rate` allows.
        """
        from optuna.trial import TrialState

        failures, stopped = 0, False
        for trial, result in zip(batch, results, strict=True):
            try:
                value = float(result.return_value)
            except Exception as error:  # raised by the job, or it returned no number
                value, reason = math.nan, str(error)
            else:
                reason = f"{self.config.optimized_metric} is {value}"  # type: ignore[union-attr]
            if study.get_trials(deepcopy=False)[trial.number].user_attrs.get(PRUNED) and not math.isnan(value):
                stopped |= _tell(study, trial, state=TrialState.PRUNED)
            elif not math.isnan(value):
                stopped |= _tell(study, trial, value)
            else:
                failures += 1
                log.warning("trial %d failed: %s", trial.number, reason)
                stopped |= _tell(study, trial, state=TrialState.FAIL)
        if failures / len(batch) > self.max_failure_rate:
            raise TrainingError(
                f"{failures} of {len(batch)} trials failed, more than hydra.sweeper.max_failure_rate="
                f"{self.max_failure_rate} allows; each says why in its folder."
            )
        return stopped


def requeue_interrupted(study: Study) -> None:
    """Queue the trials again that were running when the search was stopped, with the values that they had reported.

    The same parameters lead to the same job folder, where the run resumes from its last checkpoint.
    """
    from optuna.trial import TrialState, create_trial

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        pruned = PRUNED in trial.user_attrs
        study.tell(trial.number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        if trial.params and not pruned:
            repeated = create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=trial.user_attrs,
                system_attrs={REPEATS: trial.number, **trial.system_attrs},
                intermediate_values=trial.intermediate_values,
            )
            study.add_trial(repeated)


def save_best(study: Study, folder: Path) -> None:
    """Log the best trial and write it to `folder`/optimization_results.yaml."""
    try:
        best = study.best_trial
    except ValueError:
        log.error("No trial was completed.")  # each failed one says why in its folder
        return
    log.info("Best parameters: %s", best.params)
    log.info("Best value: %s", best.value)
    results = {"name": "optuna", "best_params": best.params, "best_value": best.value}
    OmegaConf.save(OmegaConf.create(results), folder / "optimization_results.yaml")


def _original_number(trial: FrozenTrial) -> int:
    """The number of a trial, or of the one that it repeats."""
    return int(trial.system_attrs.get(REPEATS, trial.number))


def _tell(study: Study, trial: Trial, value: float | None = None, **options: Any) -> bool:
    """Study.tell; returns whether the sampler stopped the study, as GridSampler does after the last combination.

    Study.stop is meant for Study.optimize and raises otherwise, after the result was recorded.
    """
    try:
        study.tell(trial, value, **options)
    except RuntimeError as error:
        recorded = study.get_trials(deepcopy=False)[trial.number].state.is_finished()
        if not (recorded and "Study.stop" in str(error)):
            raise
        return True
    return False
