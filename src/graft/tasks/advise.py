"""`graft advise`: predict how accurate networks would be on a data set, before any of them is trained."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from graft.advice.candidates import Source, sources
from graft.config.commands import AdviseConfig
from graft.config.fields import check_ranges
from graft.config.registration import typed
from graft.data.image_format import ImageFormat
from graft.data.sources import is_data_module
from graft.errors import ConfigError
from graft.system import downloads
from graft.system.folder_lock import claimed_folder, is_generated
from graft.system.gpu import require_gpu
from graft.system.startup import garbage_collection_paused
from graft.tasks.checks import settle
from graft.tasks.command_checks import overridden_keys
from graft.tasks.data import missing_data, open_data
from graft.tasks.locations import check_locations
from graft.tasks.train import data_line

log = logging.getLogger("graft")

RESULTS = {"advise.json": "advice", "summary.json": "a run"}
"""Files that a folder for advice must not have yet, and what they are a result of."""

CHOSEN = ("model", "strategy", "freeze", "experiment", "sweep")
"""Groups that the advice is about, or that choose one of those."""


def main(config: DictConfig) -> None:
    """Run `graft advise`.

    Args:
        config: an AdviseConfig, composed by Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    directories = [each.path for each in hydra.runtime.config_sources if each.provider == "command-line"]
    advise(config, list(hydra.overrides.task), Path(hydra.runtime.output_dir), directories)


def advise(
    config: DictConfig, overrides: Sequence[str], folder: Path, directories: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare the networks and write the advice to `folder`; returns the content of advise.json.

    Args:
        config: an AdviseConfig.
        overrides: that it was composed of.
        folder: of the output.
        directories: further folders of option files (--config-dir).
    """
    cfg, found, missing = checked(config, overrides)
    downloads.configure(cfg.download)
    with garbage_collection_paused():
        absent = missing_data(cfg)
        if absent is not None:
            raise absent
        splits = open_data(cfg)
        log.info("data  %s", data_line(splits))
        from graft.tasks import advising  # imports torch, now that every check has passed

    command = advising.Command(tuple(overrides), tuple(directories))
    return advising.run(cfg, splits, found, missing, command, folder).to_json()


def claim(config: DictConfig, folder: Path, generated_name: bool) -> Path:
    """Check the command and its folder before Hydra writes to `folder`; return the folder to use.

    Raises:
        ConfigError: the configuration, or a folder that is already used.
    """
    generated_name = generated_name or (str(folder) == str(config.folder) and is_generated(config, "folder"))
    return claimed(config, list(config.hydra.overrides.task), folder, generated_name)


def claimed(config: DictConfig, overrides: Sequence[str], folder: Path, generated_name: bool) -> Path:
    """Check the configuration and claim a folder; see `claim`."""
    checked(config, overrides)
    folder = claimed_folder(folder, generated_name, RESULTS, key="folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def checked(config: DictConfig, overrides: Sequence[str]) -> tuple[AdviseConfig, list[Source], list[str]]:
    """(the settled configuration, the networks to compare, those whose weights are missing).

    Raises:
        ConfigError: names the key and the way out.
    """
    cfg = typed(config, AdviseConfig)
    check_ranges(cfg, AdviseConfig)
    for key in sorted(overridden_keys(overrides)):
        if key.partition(".")[0] in CHOSEN:
            raise ConfigError(
                f"{key}: this is what graft advise compares.\nGive the networks as models=[squeezenet1_1,vgg16], their "
                "weights as weights={vgg16: FILE}, and leave strategy and freeze to the advice."
            )
    if cfg.resume is not None:
        raise ConfigError(f"resume={cfg.resume}: graft advise starts no run.\nLeave it out.")
    if is_data_module(cfg.data._target_):
        raise ConfigError(
            f"data._target_={cfg.data._target_}: a LightningDataModule gives batches, and advice needs single images."
            "\nUse one of Graft's data sources, e.g. data=folder or data=table."
        )
    if ImageFormat.of(cfg.data) != ImageFormat():
        raise ConfigError(
            f"data.channels={cfg.data.channels}, data.bits={cfg.data.bits}: graft advise compares networks on "
            "RGB images of 8 bits.\nLeave data.channels, data.bits, data.bands and data.max_value out."
        )
    models, weights = names_of(cfg.models), files_of(cfg.weights)
    settle(cfg, [])
    check_locations(cfg, {"folder": cfg.folder})
    require_gpu(cfg.trainer.accelerator)
    found, missing = sources(models, weights, download=cfg.advise.download)
    return cfg, found, missing


def names_of(models: object) -> list[str] | None:
    """The value of `models` as names; raises ConfigError if it is no list of them."""
    if models is None:
        return None
    names = [models] if isinstance(models, str) else models
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"models={models}: must be a list of networks, e.g. models=[squeezenet1_1,vgg16].")
    return names


def files_of(weights: object) -> dict[str, str]:
    """The value of `weights`, network -> its weights; raises ConfigError if it is none."""
    if weights is None:
        return {}
    if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
        raise ConfigError(f"weights={weights}: must map networks to their weights, e.g. 'weights={{vgg16: FILE}}'.")
    return {str(name): str(file) for name, file in weights.items()}
