"""Hydra's callback that claims the folder of a command before Hydra writes to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from graft.errors import AbortCommand
from graft.system.folder_lock import is_generated, new_folder
from graft.system.slurm import first_task


class ClaimFolder(Callback):
    """Checks the configuration and claims the folder before a command begins.

    Args:
        module: has a function `claim(config, folder, generated_name)` that returns the folder to use.
    """

    def __init__(self, module: str) -> None:
        self.module = module

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises AbortCommand where the command cannot begin."""
        from importlib import import_module

        with _refusing():
            HydraConfig.instance().set_config(config)
            hydra = config.hydra
            claim = import_module(self.module).claim
            folder = claim(config, Path(hydra.run.dir), is_generated(hydra.run, "dir"))
            with read_write(hydra), open_dict(hydra):
                hydra.run.dir = str(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Gives a sweep without a name one that no other has."""
        hydra = config.hydra
        if not first_task():
            return
        with _refusing():
            if "sweep_name" in config and is_generated(config, "sweep_name") and not is_generated(hydra.sweep, "dir"):
                name = new_folder(Path(hydra.sweep.dir)).name
                with read_write(config), open_dict(config), read_write(hydra):
                    config.sweep_name = name
                    hydra.overrides.task.append(f"sweep_name='{name}'")
            elif is_generated(hydra.sweep, "dir"):
                folder = new_folder(Path(hydra.sweep.dir))
                with read_write(hydra), open_dict(hydra):
                    hydra.sweep.dir = str(folder)
                    hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")


@contextmanager
def _refusing() -> Iterator[None]:
    """Hydra turns an exception of a callback into a warning and continues; this one gets through."""
    try:
        yield
    except Exception as error:
        raise AbortCommand(error) from error
