"""Hydra's own sweeper over all combinations, which leaves out what is finished already."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from graft.config.config_hash import config_hash
from graft.config.locations import check_locations
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.errors import ConfigError
from graft.sweep.job_folders import folder_of, restore_index
from graft.system.gpu import require_gpu

log = logging.getLogger(__name__)

ON_THIS_MACHINE = ("hydra._internal.core_plugins.basic_launcher.", "hydra_plugins.hydra_joblib_launcher.")
"""Launchers that run the jobs here, not on other machines, by how their names begin."""

DEVICE_KEYS = ("trainer", "trainer.accelerator", "experiment", "sweep")
"""Overrides that can decide whether a job wants a GPU."""


class Grid(BasicSweeper):
    """Hands to the launcher, which may have to queue for each, only the jobs that are not finished."""

    def split_arguments(self, overrides: Any, max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """The batches of jobs, each job as its overrides.

        Raises:
            ConfigError: jobs want a GPU, and would run on this machine, which has none.
        """
        batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        assert self.config is not None
        assert self.hydra_context is not None
        require_gpu_for_jobs(self.config, [job for batch in batches for job in batch], self.hydra_context.config_loader)
        sweep = Path(self.config.hydra.sweep.dir)
        self._check_locations(sweep, {tuple(filter(_has_locations, job)) for batch in batches for job in batch})
        if not sweep.is_dir():
            return batches
        restore_index(sweep)
        left = [[job for job in batch if not self._finished(sweep, job)] for batch in batches]
        total, to_go = (sum(map(len, some)) for some in (batches, left))
        if to_go < total:
            log.info("%d of %d jobs are finished; %d to go", total - to_go, total, to_go)
        return [batch for batch in left if batch]

    def _check_locations(self, sweep: Path, jobs: Iterable[Sequence[str]]) -> None:
        """Refuse the sweep where one of its jobs would write into its data set."""
        assert self.hydra_context is not None
        assert self.config is not None
        for job in jobs:
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
            check_locations(config, {"hydra.sweep.dir": sweep})

    def _finished(self, sweep: Path, job: list[str]) -> bool:
        from graft.sweep.job import DONE
        from graft.tasks.run import earlier_run

        assert self.hydra_context is not None
        assert self.config is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, job)
        configuration = config_hash(typed(composed, TrainConfig))
        folder = folder_of(sweep, configuration)
        return folder is not None and earlier_run(folder, configuration).get("status") in DONE


def _has_locations(override: str) -> bool:
    """Whether an override can change where the data set or the cache lies."""
    return override.lstrip("+~").startswith(("data", "paths", "cache", "experiment"))


def require_gpu_for_jobs(config: Any, jobs: Sequence[Sequence[str]], loader: Any) -> None:
    """Refuse a sweep whose jobs would each find out that this machine has no GPU.

    Args:
        config: of the sweep.
        jobs: the overrides of each; those of a search, which are not known yet, change nothing here.
        loader: Hydra's, which composes a job's configuration.

    Raises:
        ConfigError: names how many jobs of how many, and the way out.
    """
    if not str(config.hydra.launcher._target_).startswith(ON_THIS_MACHINE):
        return
    wanted = [tuple(_device_words(job)) for job in jobs]
    representatives = dict(zip(wanted, jobs, strict=True))
    refused: dict[tuple[str, ...], ConfigError] = {}
    for words, job in representatives.items():
        own = config if len(representatives) == 1 else loader.load_sweep_config(config, [*job])
        try:
            require_gpu(own.trainer.accelerator)
        except ConfigError as error:
            refused[words] = error
    count = sum(words in refused for words in wanted)
    if count:
        reason = next(iter(refused.values()))
        which = "None of the jobs can" if count == len(jobs) else f"{count} of the {len(jobs)} jobs cannot"
        raise ConfigError(f"{which} run on this machine, so none is started.\n{reason}")


def _device_words(job: Sequence[str]) -> Iterator[str]:
    for override in OverridesParser.create().parse_overrides([*job]):
        if override.key_or_group in DEVICE_KEYS:
            yield str(override.input_line)
