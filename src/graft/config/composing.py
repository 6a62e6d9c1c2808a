"""Composes the configuration of a command from overrides."""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose_config(task: str, words: Sequence[str]) -> "DictConfig":
    """The configuration of `graft TASK WORDS`, with its node `hydra`.

    Within a command of Hydra, options are found where that finds them, in --config-dir too.

    Raises:
        ConfigError: a key that no code reads; names the nearest.
        HydraException, OmegaConfBaseException: an option or a value that Hydra refuses.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from graft.config import conf_dir
    from graft.config.overrides import quote_literals
    from graft.config.registration import SCHEMAS, register
    from graft.config.unknown_keys import refuse_unknown_keys

    register(task)
    within = GlobalHydra.instance().is_initialized()
    with contextlib.nullcontext() if within else initialize_config_dir(str(conf_dir())):
        config = compose(task, quote_literals(words, task), return_hydra_config=True)
        refuse_unknown_keys(config, SCHEMAS[task])
        return config
