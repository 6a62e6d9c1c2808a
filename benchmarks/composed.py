"""Configurations for benchmarks, as `graft train` composes them."""

from typing import Any

from hydra import compose, initialize_config_dir

from graft.config import conf_dir
from graft.config.schema import register
from graft.config.validation import settle


def composed(*words: str) -> Any:
    """The configuration of `graft train WORDS`, without a test, a baseline or any logger."""
    register()
    quiet = ("trainer.baseline=false", "trainer.test=false", "logger=none", "callbacks.progress=none")
    with initialize_config_dir(str(conf_dir())):
        return settle(compose("train", [*quiet, *words]))
