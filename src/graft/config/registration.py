"""Registers the schema of every command with Hydra, and converts composed configurations to typed ones.

Nothing large is imported, because `--help` uses this module.
"""

import dataclasses
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from graft.config import optimizers
from graft.config.commands import (
    AdviseConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ImproveConfig,
    InspectConfig,
    LrFindConfig,
    PackConfig,
    PredictConfig,
    SoupConfig,
)
from graft.config.fields import Open
from graft.config.schema import TrainConfig
from graft.errors import ConfigError

T = TypeVar("T")

SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "advise": AdviseConfig,
    "improve": ImproveConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "compare": CompareConfig,
    "inspect": InspectConfig,
    "lr_find": LrFindConfig,
    "soup": SoupConfig,
    "pack": PackConfig,
}


def register(*tasks: str) -> None:
    """Register with Hydra the schemas of `tasks` under `schema/`, without arguments those of all commands, and the
    optimizers that need no option file."""
    optimizers.register()
    store = ConfigStore.instance()
    for name in tasks or SCHEMAS:
        if f"{name}.yaml" in store.repo.get("schema", {}):  # as costly as composing
            continue
        store.store(group="schema", name=name, node=composable(SCHEMAS[name]), package="_global_")


def composable(schema: type) -> DictConfig:
    """A schema as a DictConfig in which only open nodes and dictionaries accept keys that it does not list."""
    config: DictConfig = OmegaConf.structured(schema)
    _open(config)
    return config


def _open(node: DictConfig) -> None:
    kind = OmegaConf.get_type(node)
    if kind is dict or (isinstance(kind, type) and issubclass(kind, Open)):
        OmegaConf.set_struct(node, False)
    for name in map(str, node):
        missing = OmegaConf.is_missing(node, name) or OmegaConf.is_interpolation(node, name)
        if not missing and isinstance(child := node[name], DictConfig):
            _open(child)


def typed(config: DictConfig, schema: type[T]) -> T:
    """Convert a composed configuration to an instance of its schema; extra keys of open nodes become attributes too.

    Raises:
        ConfigError: a key that no code reads (names the nearest), or a value that is missing.
        OmegaConfBaseException: an interpolation that cannot be resolved.
    """
    from graft.config.unknown_keys import refuse_unknown_keys

    refuse_unknown_keys(config, schema)
    for key in sorted(OmegaConf.missing_keys(config)):
        if not key.startswith("hydra."):
            raise ConfigError(f"{key} is not set. Give {key}=….")
    values = {str(key): config[key] for key in config if key != "hydra"}
    return schema(
        **{key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value for key, value in values.items()}
    )


def plain(config: object) -> Any:
    """Convert a typed configuration to plain containers, as stored in checkpoints and summaries."""
    if dataclasses.is_dataclass(config):
        return {name: plain(value) for name, value in vars(config).items()}
    if isinstance(config, dict):
        return {name: plain(value) for name, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, list | tuple) else config
