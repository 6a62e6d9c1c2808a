"""Refuses keys that no code reads, and suggests the key that was probably meant."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from graft.config.fields import Open, Parts, keys_of, node_type
from graft.config.schema import TrainConfig
from graft.config.targets import TARGET, short_name
from graft.errors import ConfigError, did_you_mean, nearest, similar

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "arch": ("model",),
    "backbone": ("model",),
    "batch": ("batch_size", "data.batch_size"),
    "bs": ("batch_size", "data.batch_size"),
    "checkpoint": ("model.weights",),
    "ckpt": ("checkpoint", "model.weights"),
    "ckpt_path": ("checkpoint", "resume"),
    "clip": ("trainer.gradient_clip_val",),
    "dataset": ("data",),
    "device": ("trainer.accelerator",),
    "early_stop": ("callbacks.early_stopping",),
    "epochs": ("trainer.max_epochs",),
    "formats": ("format",),
    "fp16": ("trainer.precision",),
    "gpus": ("trainer.devices",),
    "image": ("source",),
    "image_size": ("preprocess.input_size", "data.preprocess.input_size"),
    "images": ("source", "review.images"),
    "input": ("source",),
    "learning_rate": ("optimizer.lr",),
    "lr_scheduler": ("scheduler",),
    "metric": ("sort", "optimized_metric"),
    "net": ("model",),
    "network": ("model",),
    "num_epochs": ("trainer.max_epochs",),
    "opset": ("format.onnx.opset",),
    "output": ("paths.outputs",),
    "output_dir": ("folder", "output", "hydra.run.dir"),
    "outputs": ("runs", "paths.outputs"),
    "pretrained": ("model.weights",),
    "random_seed": ("seed",),
    "steps": ("trainer.max_steps",),
    "wd": ("optimizer.weight_decay",),
    "weights": ("model.weights", "checkpoint"),
    "workers": ("num_workers", "data.num_workers"),
}
"""Name of a key or a group in other tools -> its names in Graft; the first that a command has is suggested."""


def refuse_unknown_keys(config: DictConfig, schema: type) -> None:
    """Refuse keys outside of the schema, which `+key=value` adds and no code would read.

    Raises:
        ConfigError: names the first one, and the key that was probably meant.
    """
    for key, value in _unknown(config, schema, ""):
        plain_value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        raise ConfigError(f"{key}={plain_value}: there is no such key.{suggestion(key, schema)}")


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


def no_such_key(key: str, schema: type) -> str:
    """The error message for an override of `key`, which is not in the schema, or a node of it that is not a group."""
    if key in _names(schema)[1]:
        keys = [leaf for leaf, _, _ in keys_of(schema) if leaf.startswith(f"{key}.")]
        return f"{key}: not a config group of this command. Set its keys: {', '.join(keys)}."
    return f"{key}: there is no such key.{suggestion(key, schema)}"


def suggestion(key: str, schema: type) -> str:
    """Suggest what was meant by a key that is not in the schema, e.g. " Did you mean optimizer.lr?" for "lr".

    The key is searched for among the last parts of all keys, then among the names that other tools use, then in
    `graft train`, then by its spelling.

    Returns:
        A sentence to append to an error message; empty without a suggestion.
    """
    leaves, nodes = _names(schema)
    if same := _same_name(key, schema):
        return did_you_mean(same[:3])
    if schema is not TrainConfig and (same := [key] if key in _names(TrainConfig)[1] else _same_name(key, TrainConfig)):
        return f" {same[0]} is a {'group' if same[0] == key else 'key'} of graft train, not of this command."
    if "." in key:
        return nearest(key, leaves)
    alike = similar(key, [*nodes, *(short_name(leaf) for leaf in leaves)], most=1)
    return did_you_mean([name for name in (*nodes, *leaves) if short_name(name) in alike][:3])


def _names(schema: type) -> tuple[list[str], list[str]]:
    """(keys, top-level groups and nodes) of a schema."""
    hints = get_type_hints(schema)
    return [leaf for leaf, _, _ in keys_of(schema)], [name for name, hint in hints.items() if node_type(hint)]


def _same_name(key: str, schema: type) -> list[str]:
    """The keys of a schema that other tools call by the last part of `key`, or whose last part is the same."""
    leaves, nodes = _names(schema)
    last = short_name(key)
    for synonym in SYNONYMS.get(last, ()):
        top = synonym.partition(".")[0]
        if synonym in (*leaves, *nodes) or top == "hydra" or (top in nodes and _takes_any_name(schema, top)):
            return [synonym]
    return [leaf for leaf in leaves if short_name(leaf) == last and leaf != key]


def _takes_any_name(schema: type, name: str) -> bool:
    """Whether the parts of a node have names that the user chooses."""
    node = node_type(get_type_hints(schema)[name])
    return node is not None and issubclass(node, Parts)
