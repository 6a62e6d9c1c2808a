"""Hydra's own sweeper over all combinations, which leaves out what is finished already."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

from graft.config.identity import identity
from graft.config.locations import check_locations
from graft.tasks.folders import INDEX, folder_of

log = logging.getLogger(__name__)


class Grid(BasicSweeper):
    """Hands to the launcher, which may have to queue for each, only the jobs that are not finished."""

    def split_arguments(self, overrides: Any, max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """The batches of jobs, each job as its overrides."""
        batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        assert self.config is not None
        sweep = Path(self.config.hydra.sweep.dir)
        self._check_locations(sweep, {tuple(filter(_has_locations, job)) for batch in batches for job in batch})
        if not (sweep / INDEX).is_dir():
            return batches
        left = [[job for job in batch if not self._finished(sweep, job)] for batch in batches]
        total, to_go = (sum(map(len, some)) for some in (batches, left))
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
        from graft.tasks.job import DONE
        from graft.tasks.run import earlier_run

        assert self.hydra_context is not None
        assert self.config is not None
        configuration = identity(self.hydra_context.config_loader.load_sweep_config(self.config, job))
        folder = folder_of(sweep, configuration)
        return folder is not None and earlier_run(folder, configuration).get("status") in DONE


def _has_locations(override: str) -> bool:
    """Whether an override can change where the data set or the cache lies."""
    return override.lstrip("+~").startswith(("data", "paths", "cache", "experiment"))
