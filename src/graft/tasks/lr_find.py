"""`graft lr_find`: suggest a learning rate for the run that `graft train` would make of the same overrides."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from graft.config.commands import LrFindConfig
from graft.config.registration import typed
from graft.errors import ConfigError
from graft.system import downloads
from graft.system.folder_lock import claimed_folder
from graft.system.gpu import require_gpu
from graft.system.startup import garbage_collection_paused
from graft.tasks.checks import settle
from graft.tasks.data import available_data
from graft.tasks.train import data_line

log = logging.getLogger("graft")


def main(config: DictConfig) -> None:
    """Run `graft lr_find`.

    Args:
        config: an LrFindConfig, composed by Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    cfg = checked(config, overrides)
    downloads.configure(cfg.download)
    with garbage_collection_paused():
        splits = available_data(cfg)
        log.info("data  %s", data_line(splits))
        from graft.tasks import lr_search  # imports torch and Lightning, now that every check has passed

    lr_search.run(cfg, splits, overrides, Path(hydra.runtime.output_dir))


def claim(config: DictConfig, folder: Path, generated_name: bool) -> Path:
    """Check the command and its folder before Hydra writes to `folder`; return the folder to use.

    Raises:
        ConfigError: the configuration, or a folder that is already used.
    """
    checked(config, list(config.hydra.overrides.task))
    return claimed_folder(folder, generated_name, {"lr_find.json": "a search", "summary.json": "a run"})


def checked(config: DictConfig, overrides: list[str]) -> LrFindConfig:
    """The settled configuration of the command.

    Raises:
        ConfigError: names the key and the way out.
    """
    from graft.config.fields import check_ranges

    cfg = typed(config, LrFindConfig)
    check_ranges(cfg, LrFindConfig)
    settle(cfg, overrides)
    require_gpu(cfg.trainer.accelerator)
    rates = cfg.lr_find
    if rates.min_lr >= rates.max_lr:
        raise ConfigError(f"lr_find.min_lr={rates.min_lr:g} and lr_find.max_lr={rates.max_lr:g}: must ascend.")
    if cfg.resume is not None:
        raise ConfigError(
            f"resume={cfg.resume}: graft lr_find starts no run.\nTo search from a run's weights: "
            "model.weights=RUN_FOLDER/checkpoints/best.ckpt."
        )
    return cfg
