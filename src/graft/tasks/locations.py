"""Where a command writes: never into the data set, and no data set where room is made by removing things."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from graft.config import FEATURES
from graft.config.commands import InspectConfig
from graft.config.schema import TrainConfig
from graft.errors import ConfigError, GraftError
from graft.system.files import is_within


class CheckLocations(Callback):
    """Refuses a command that would write into its data set before Hydra makes the first folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Raises SystemExit(1) after saying why: Hydra turns any other exception of a callback into a warning."""
        self._check(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """As `on_run_start`; what differs from job to job is checked by `graft.sweep.grid`."""
        self._check(config, "hydra.sweep.dir")

    def _check(self, config: DictConfig, key: str) -> None:
        try:
            check_locations(config, {key: OmegaConf.select(config, key)})
        except OmegaConfBaseException:
            return  # a value that cannot be resolved, which the task itself reports
        except GraftError as error:
            sys.stderr.write(f"{error}\n")
            raise SystemExit(1) from error


def check_locations(config: TrainConfig | InspectConfig | DictConfig, written: Mapping[str, Any]) -> None:
    """Refuse a cache in the data set, a data set in the cache, and anything else to be written into the data set.

    Args:
        config: of the command.
        written: key → folder or file that is going to be written; None for one that is not.

    Raises:
        ConfigError: names both keys and the way out.
    """
    if config.data.root is None:
        return
    check_written(config.data.root, config.paths.outputs, written)
    cache_config = getattr(config, "cache", None)
    if cache_config is None or cache_config.mode == "none":
        return
    root, cache = Path(config.data.root), Path(config.paths.cache)
    folders = list(_folders_of(root))
    if _is_inside(cache, folders) or _is_inside(cache / FEATURES, folders):
        raise ConfigError(
            f"paths.cache={cache}: is in data.root={config.data.root}, the data set, and nothing is ever written "
            f"there.\n{_way_out('paths.cache', root)}, or set cache=none."
        )
    if is_within(root, cache):
        raise ConfigError(
            f"data.root={config.data.root}: is in paths.cache={cache}, where old features are removed to make room."
            "\nSet paths.cache=FOLDER to one without data in it, or cache=none."
        )


def check_written(data_root: str | None, outputs: str, written: Mapping[str, Any]) -> None:
    """Refuse what is to be written into the data set at `data_root`.

    Args:
        data_root: None for an embedded set.
        outputs: `paths.outputs`, which is named if it is the cause.
        written: as for `check_locations`.

    Raises:
        ConfigError: names both keys and the way out.
    """
    if data_root is None:
        return
    root = Path(data_root)
    folders = list(_folders_of(root))
    for key, value in written.items():
        if value is not None and _is_inside(Path(value), folders):
            if _is_inside(Path(outputs), folders):
                key, value = "paths.outputs", outputs
            raise ConfigError(
                f"{key}={value}: is in data.root={data_root}, the data set, and nothing is ever written there.\n"
                f"{_way_out(key, root)}."
            )


def _is_inside(path: Path, folders: list[Path]) -> bool:
    return any(is_within(path, folder) for folder in folders)


def _folders_of(root: Path) -> Iterator[Path]:
    """`root`, and the folders that are linked into it as splits or as classes."""
    root = root.expanduser()
    yield root
    if not root.is_dir():
        return
    from graft.data.layout import SPLIT_NAMES  # imports NumPy

    splits = {name for names in SPLIT_NAMES.values() for name in names}
    parts = [root, *(root / name for name in _names(root) if name.lower() in splits)]
    for part in parts:
        yield from (part / name for name in _names(part, linked=True))


def _names(folder: Path, *, linked: bool = False) -> list[str]:
    """The folders, or only the links to folders, directly in `folder`; none where it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir() and (entry.is_symlink() or not linked)]
    return []


def _way_out(key: str, root: Path) -> str:
    """`key` with a folder next to the data set; for a data set without a parent, another data set."""
    real = Path(os.path.realpath(root.expanduser()))
    if real.parent == real:
        return "Move the images to a separate folder and set data.root to it"
    name = {"paths.cache": "cache", "output": "report.json"}.get(key, "outputs")
    return f"Choose a folder outside of it, e.g. {key}={real.parent / f'{real.name}-{name}'}"
