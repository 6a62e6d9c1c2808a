"""Keys that nothing reads: refused, with the key that was probably meant."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from graft.config.fields import Open, Parts, keys_of, node_type
from graft.config.targets import TARGET
from graft.errors import ConfigError, did_you_mean, nearest, similar

SYNONYMS = {
    "arch": "model",
    "backbone": "model",
    "bs": "data.batch_size",
    "checkpoint": "model.weights",
    "clip": "trainer.gradient_clip_val",
    "dataset": "data",
    "device": "trainer.accelerator",
    "early_stop": "callbacks.early_stopping",
    "epochs": "trainer.max_epochs",
    "fp16": "trainer.precision",
    "gpus": "trainer.devices",
    "image_size": "data.preprocess.input_size",
    "learning_rate": "optimizer.lr",
    "lr_scheduler": "scheduler",
    "net": "model",
    "network": "model",
    "num_epochs": "trainer.max_epochs",
    "output": "paths.outputs",
    "output_dir": "hydra.run.dir",
    "pretrained": "model.weights",
    "random_seed": "seed",
    "steps": "trainer.max_steps",
    "wd": "optimizer.weight_decay",
    "workers": "data.num_workers",
}
"""What other tools call a key or a group -> its name here."""


def refuse_unknown_keys(config: DictConfig, schema: type) -> None:
    """Refuse keys that are not in the schema, which `+key=value` would add without anything reading them.

    Raises:
        ConfigError: names the first, and the key that was probably meant.
    """
    for key, value in _unknown(config, schema, ""):
        shown = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        raise ConfigError(f"{key}={shown}: there is no such key.{suggestion(key, schema)}")


def _unknown(config: DictConfig, schema: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(schema)
    fields = {field.name for field in dataclasses.fields(schema)}
    for name in map(str, config):
        key = f"{prefix}{name}"
        if key == "hydra":
            continue
        value = None if OmegaConf.is_missing(config, name) or OmegaConf.is_interpolation(config, name) else config[name]
        if name in fields:
            if (node := node_type(hints[name])) is not None and isinstance(value, DictConfig):
                yield from _unknown(value, node, f"{key}.")
        elif not issubclass(schema, Open) or (issubclass(schema, Parts) and not _is_part(value)):
            yield key, value


def _is_part(value: object) -> bool:
    return value is None or value is False or (isinstance(value, Mapping) and TARGET in value)


def suggestion(key: str, schema: type) -> str:
    """Return " Did you mean optimizer.lr?" for "lr" or "optimizr.lr"; an empty text where nothing is near.

    A key is searched by its last part among the leaves of the schema, then by what other tools call it, then by
    its spelling.
    """
    leaves = [leaf for leaf, _, _ in keys_of(schema)]
    groups = {leaf.partition(".")[0] for leaf in leaves if "." in leaf}
    last = key.rpartition(".")[2]
    named = [leaf for leaf in leaves if leaf.rpartition(".")[2] == last and leaf != key]
    if last in SYNONYMS and SYNONYMS[last].partition(".")[0] in (*groups, *leaves, "hydra"):
        return did_you_mean([SYNONYMS[last]])
    if named:
        return did_you_mean(named[:3])
    if "." in key:
        return nearest(key, leaves)
    alike = similar(key, [*groups, *(leaf.rpartition(".")[2] for leaf in leaves)], most=1)
    return did_you_mean([leaf for leaf in (*groups, *leaves) if leaf.rpartition(".")[2] in alike][:3])
