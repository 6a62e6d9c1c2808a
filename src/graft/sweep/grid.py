"""Hydra sweeper over all combinations that runs only the jobs that are not finished."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from graft.config.config_hash import config_hash
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.errors import ConfigError
from graft.sweep.job_folders import existing_job_folder, restore_index
from graft.system.gpu import require_gpu
from graft.tasks.locations import check_locations

log = logging.getLogger(__name__)

LOCAL_LAUNCHERS = ("BasicLauncher", "JoblibLauncher")
"""Launchers that run the jobs on this machine, by class name."""

DEVICE_KEYS = ("trainer", "trainer.accelerator", "experiment", "sweep")
"""Overrides that can decide whether a job needs a GPU."""


class GridSweeper(Sweeper):
    """Launches every combination of the swept values, except for the jobs that are finished.

    Args:
        max_batch_size: jobs that are composed and launched at a time; None: all at once.
        params: sweeps from the configuration; those of the command line come after them.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, str] | None = None) -> None:
        if max_batch_size is not None and max_batch_size < 1:
            raise ConfigError(f"hydra.sweeper.max_batch_size={max_batch_size}: must be at least 1, or null for all.")
        self.max_batch_size = max_batch_size
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, hydra_context.config_loader
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs that are not finished.

        Raises:
            ConfigError: jobs need a GPU, would run on this machine, and it has none; a job would write into its data
                set; or a sweep is an interval, which has no list of values.
        """
        assert self.config is not None
        assert self.launcher is not None
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        jobs = combinations(OverridesParser.create(config_loader=self.loader).parse_overrides(words))
        require_gpu_for_jobs(self.config, jobs, self.loader)
        folder = Path(self.config.hydra.sweep.dir)
        self._check_locations(folder, {tuple(filter(_has_locations, job)) for job in jobs})
        remaining = self._unfinished(folder, jobs)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        size = self.max_batch_size or max(1, len(remaining))
        for start in range(0, len(remaining), size):
            batch = remaining[start : start + size]
            self.validate_batch_is_legal(batch)
            for result in self.launcher.launch(batch, initial_job_idx=start):
                _ = result.return_value  # raises what the job raised

    def _unfinished(self, folder: Path, jobs: list[list[str]]) -> list[list[str]]:
        if not folder.is_dir():
            return jobs
        restore_index(folder)
        remaining = [job for job in jobs if not self._is_finished(folder, job)]
        if len(remaining) < len(jobs):
            log.info("%d of %d jobs are finished; %d to go", len(jobs) - len(remaining), len(jobs), len(remaining))
        return remaining

    def _is_finished(self, folder: Path, job: list[str]) -> bool:
        from graft.sweep.job import DONE
        from graft.tasks.run import earlier_run

        assert self.config is not None
        composed = self.loader.load_sweep_config(self.config, job)
        configuration = config_hash(typed(composed, TrainConfig))
        earlier = existing_job_folder(folder, configuration)
        return earlier is not None and earlier_run(earlier, configuration).get("status") in DONE

    def _check_locations(self, folder: Path, jobs: Iterable[Sequence[str]]) -> None:
        """Refuse a sweep with a job that would write into its data set."""
        assert self.config is not None
        for job in jobs:
            check_locations(self.loader.load_sweep_config(self.config, list(job)), {"hydra.sweep.dir": folder})


def combinations(overrides: Iterable[Override]) -> list[list[str]]:
    """Every combination of the swept values, each as the overrides of a job; the last key varies fastest.

    Raises:
        ConfigError: a sweep without a list of values, such as an interval; names it.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(
                f"{override.input_line}: a grid needs a list of values.\n"
                "Use a choice or a range, or search the interval with sweep=optuna."
            )
    return [list(job) for job in itertools.product(*values.values())]


def _has_locations(override: str) -> bool:
    """Whether an override can change the path of the data set or of the cache."""
    return override.lstrip("+~").startswith(("data", "paths", "cache", "experiment"))


def require_gpu_for_jobs(config: DictConfig, jobs: Sequence[Sequence[str]], loader: ConfigLoader | None) -> None:
    """Refuse a sweep whose jobs would each fail because this machine has no GPU.

    Args:
        config: of the sweep.
        jobs: the overrides of each job; a search, whose jobs are not known yet, gives one job without overrides.
        loader: Hydra's, which composes the configuration of a job; not used for a single kind of job.

    Raises:
        ConfigError: names how many of the jobs cannot run, and the way out.
    """
    if str(config.hydra.launcher._target_).rpartition(".")[2] not in LOCAL_LAUNCHERS:
        return
    device_overrides = [tuple(_device_overrides(job)) for job in jobs]
    representatives = dict(zip(device_overrides, jobs, strict=True))
    refused: dict[tuple[str, ...], ConfigError] = {}
    for overrides, job in representatives.items():
        job_config = config
        if len(representatives) > 1:
            assert loader is not None
            job_config = loader.load_sweep_config(config, [*job])
        try:
            require_gpu(job_config.trainer.accelerator)
        except ConfigError as error:
            refused[overrides] = error
    count = sum(overrides in refused for overrides in device_overrides)
    if count:
        reason = next(iter(refused.values()))
        which = "None of the jobs can" if count == len(jobs) else f"{count} of the {len(jobs)} jobs cannot"
        raise ConfigError(f"{which} run on this machine, so none is started.\n{reason}")


def _device_overrides(job: Sequence[str]) -> Iterator[str]:
    for override in OverridesParser.create().parse_overrides([*job]):
        if override.key_or_group in DEVICE_KEYS:
            yield str(override.input_line)
