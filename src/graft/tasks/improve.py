"""`graft improve`: what is wrong with a data set, what more images would buy, and what to label next."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from graft.advice.candidates import Source, sources
from graft.config.commands import ImproveConfig
from graft.config.fields import check_ranges, one_of
from graft.config.registration import typed
from graft.config.schema import DataConfig
from graft.errors import ConfigError
from graft.learning.checkpoints import checkpoint_file
from graft.system import downloads
from graft.system.folder_lock import claimed_folder, is_generated
from graft.system.startup import garbage_collection_paused
from graft.tasks.advise import files_of, names_of
from graft.tasks.command_checks import overridden_keys, texts_of

RESULT = "improve.json"

NOT_NEEDED = ("data.sampler", "data.horizontal_flip", "data.draft")
"""Keys of the data that count in training only."""


@dataclass(frozen=True)
class Command:
    """A checked command.

    Attributes:
        config: of the command.
        overrides: of the command line.
        keys: that they set.
        checkpoint: of the run; None without one.
        sources: the networks of `models` and `weights`; empty without these.
    """

    config: ImproveConfig
    overrides: tuple[str, ...]
    keys: frozenset[str]
    checkpoint: Path | None
    sources: tuple[Source, ...] = ()


def main(config: DictConfig) -> None:
    """Run `graft improve`.

    Args:
        config: an ImproveConfig, composed by Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    improve(config, list(hydra.overrides.task), Path(hydra.runtime.output_dir))


def improve(config: DictConfig, overrides: Collection[str], folder: Path) -> dict[str, Any]:
    """Look for proposals and write them to `folder`; returns the content of improve.json.

    Args:
        config: an ImproveConfig.
        overrides: that it was composed of.
        folder: of the output.
    """
    command = checked(config, overrides)
    downloads.configure(command.config.download)
    with garbage_collection_paused():
        from graft.tasks import improving  # imports torch, now that every check has passed

    return improving.run(command, folder)


def claim(config: DictConfig, folder: Path, generated_name: bool) -> Path:
    """Check the command and its folder before Hydra writes to `folder`; return the folder to use.

    Raises:
        ConfigError, TrainingError: the configuration, the run, or a folder that is already used.
    """
    generated_name = generated_name or (str(folder) == str(config.folder) and is_generated(config, "folder"))
    return claimed(config, list(config.hydra.overrides.task), folder, generated_name)


def claimed(config: DictConfig, overrides: Collection[str], folder: Path, generated_name: bool) -> Path:
    """Check the configuration and claim a folder; see `claim`."""
    checked(config, overrides)
    folder = claimed_folder(folder, generated_name, {RESULT: "proposals", "summary.json": "a run"}, key="folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checked(config: DictConfig, overrides: Collection[str]) -> Command:
    """The command, if it can begin.

    Raises:
        ConfigError, TrainingError, DataError: names the key and the way out.
    """
    cfg = typed(config, ImproveConfig)
    check_ranges(cfg, ImproveConfig)
    keys = overridden_keys(overrides)
    if cfg.run is None and cfg.data._target_ is None:
        raise ConfigError("run or data: neither is set.\nGive run=RUN_FOLDER, or data=folder data.root=FOLDER.")
    for key in sorted(keys.intersection(NOT_NEEDED)):
        raise ConfigError(f"{key}: counts in training only.\nLeave it out.")
    if cfg.improve.kinds is not None:
        from graft.improvement.proposals import KINDS

        cfg.improve.kinds = texts_of(cfg.improve.kinds)
        for kind in cfg.improve.kinds:
            one_of("improve.kinds", kind, KINDS)
    several = cfg.models is not None or cfg.weights is not None
    if several and cfg.model._target_ is not None:
        raise ConfigError(
            f"model={cfg.model.name} and models or weights disagree: the first names one network, the others several.\n"
            "Give model=NAME model.weights=FILE, or models=[NAME,NAME] 'weights={NAME: FILE}'."
        )
    found = sources(names_of(cfg.models), files_of(cfg.weights))[0] if several else []
    if cfg.weights is not None and cfg.models is None:
        found = [source for source in found if source.name in cfg.weights]
    _check_data(cfg)
    if cfg.unlabelled is not None:
        _require_images(cfg.unlabelled)
    checkpoint = None if cfg.run is None else checkpoint_file(cfg.run, "run")
    return Command(cfg, tuple(overrides), keys, checkpoint, tuple(found))


def _check_data(config: ImproveConfig) -> None:
    from graft.data.corrections import read_corrections
    from graft.data.loading import checked_group_pattern
    from graft.data.sources import check_source, checked_name, is_data_module, source_arguments

    data = config.data
    if data._target_ is not None:
        data.name = checked_name(data.name, data._target_)
        if is_data_module(data._target_):
            raise ConfigError(
                f"data._target_={data._target_}: a LightningDataModule gives batches, and single images are needed."
                "\nUse one of Graft's data sources, e.g. data=folder or data=table."
            )
        check_source(data._target_, source_arguments(data, DataConfig))
    checked_group_pattern(data.group_pattern)
    if data.corrections is not None:
        read_corrections(data.corrections)


def _require_images(folder: str) -> None:
    from graft.data.stream import find_images

    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(f"unlabelled={folder}: {'is no folder' if path.exists() else 'there is no such folder'}.")
    if next(find_images([str(path)]), None) is None:
        raise ConfigError(f"unlabelled={folder}: there is no image in it, at any depth.")
