"""Reads the configuration recorded in a checkpoint as untrusted data: known keys only, and no unrequested imports."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from graft.config.schema import DISTILLATION, DataConfig, LossConfig
from graft.errors import ConfigError, RecordError
from graft.system.values import (
    Check,
    UnexpectedValue,
    among,
    either,
    flag,
    integer,
    literal,
    number,
    optional,
    read_values,
    scalar,
    sequence,
    text,
    tree,
)

MOST = 2**31 - 1

PRECISIONS = ("16", "bf16", "32", "64")

LIMIT: Check = optional(either(integer(0, MOST), number(0, 1)))
"""trainer.limit_*_batches."""

MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

GRAFT_VIEWS = "graft.learning.views"


def _views(value: object) -> dict[str, dict[str, Any]]:
    """Check at most 100 views, name -> target and plain arguments; older checkpoints list names of Graft's views."""
    if isinstance(value, list | tuple):
        names: tuple[str, ...] = sequence(_identifier, 100, least=1)(value)
        return {name: {"_target_": f"{GRAFT_VIEWS}.{name}"} for name in names}
    if not isinstance(value, Mapping) or not 1 <= len(value) <= 100:
        raise UnexpectedValue(value, "1 to 100 views")
    return {text(200)(name): _part(node) for name, node in value.items() if node is not None}


def _identifier(value: object) -> str:
    checked: str = text(200)(value)
    if not checked.isidentifier():
        raise UnexpectedValue(value, "a name")
    return checked


def _part(value: object) -> dict[str, Any]:
    """Check a `_target_` with plain arguments, which contain no further targets."""
    target = value.get("_target_") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(target, str) or not MODULE.fullmatch(target):
        raise UnexpectedValue(value, "a mapping with a dotted _target_")
    plain = either(scalar, sequence(scalar, 1000))
    arguments = {_argument(name): plain(each) for name, each in value.items() if name != "_target_"}
    return {"_target_": text(200)(target), **arguments}


def _argument(value: object) -> str:
    name = _identifier(value)
    if name.startswith("_"):  # _args_, _partial_, ...: keys of Hydra
        raise UnexpectedValue(value, "the name of an argument")
    return name


def _loss(value: object) -> dict[str, Any]:
    """The loss and its class weights; older checkpoints, without a target, have cross-entropy."""
    if not isinstance(value, Mapping) or "_target_" not in value:
        return {}
    own = {field.name for field in dataclasses.fields(LossConfig)} - {"_target_", "label_smoothing"}
    if value.get("teacher") is None:
        own -= {name for name in DISTILLATION if value.get(name) is not None}
    weights, positive = (
        tree(scalar, 1_000_000, depth=2)(value.get(key)) for key in ("class_weights", "positive_weights")
    )
    beta = number(0, 1)(value.get("class_weights_beta", LossConfig.class_weights_beta))
    part = _part({name: each for name, each in value.items() if name not in own})
    return {**part, "class_weights": weights, "class_weights_beta": beta, "positive_weights": positive}


def _metrics(value: object) -> dict[str, dict[str, Any]]:
    """Name -> target and plain arguments of at most 100 metrics."""
    if not isinstance(value, Mapping) or len(value) > 100:
        raise UnexpectedValue(value, "at most 100 metrics")
    return {_identifier(name): _part(node) for name, node in value.items() if node not in (None, False)}


RUN: dict[str, dict[str, Check]] = {
    "": {"seed": integer(0, 2**32 - 1), "tta": flag, "views": _views, "loss": _loss, "metrics": _metrics},
    "data": {
        "_target_": literal(200),
        "name": optional(literal(200)),
        "root": optional(literal()),
        "batch_size": integer(1, 2**16),
        "num_workers": either(among("auto"), integer(0, 256)),
        "shots": optional(integer(1, MOST)),
        "val_fraction": number(0, 1),
        "fold": optional(integer(0, MOST)),
        "folds": optional(integer(2, MOST)),
        "group_pattern": optional(literal()),
        "on_error": among("raise", "skip"),
        "duplicates": among("keep", "drop", "group"),
        "corrections": optional(literal()),
    },
    "paths": {"data": literal()},
    "trainer": {
        "accelerator": among("auto", "cpu", "gpu", "cuda", "mps"),
        "precision": among("auto", *(f"{bits}{kind}" for bits in PRECISIONS for kind in ("", "-true", "-mixed"))),
        "channels_last": flag,
        "limit_train_batches": LIMIT,
        "limit_val_batches": LIMIT,
        "limit_test_batches": LIMIT,
    },
}
"""Keys that determine the metrics of a checkpoint; other keys come from the command."""


def is_graft_view(node: Mapping[str, Any]) -> bool:
    """Whether a recorded view is one of `graft.learning.views`."""
    module, _, name = node["_target_"].rpartition(".")
    return module == GRAFT_VIEWS and not name.startswith("_")


LIBRARY_PARTS = re.compile(
    r"torch\.nn\.[A-Z]\w*Loss|torch\.nn\.functional\.(\w+_loss|\w*cross_entropy)|torchmetrics(\.classification)?\.[A-Z]\w*"
    r"|graft\.learning\.(classification|imbalance|multi_label)\.[A-Z]\w*"
)


def is_library_part(node: Mapping[str, Any]) -> bool:
    """Whether a recorded loss or metric is one of torch, torchmetrics or Graft, which does nothing but compute."""
    return LIBRARY_PARTS.fullmatch(node["_target_"]) is not None


def recorded_run(config: Mapping[str, object], source: str) -> dict[str, Any]:
    """Check and return the recorded keys in `RUN` and the arguments of the data source, as plain values.

    Args:
        config: configuration in the checkpoint; other keys are ignored.
        source: path of the checkpoint, for messages.

    Raises:
        RecordError: a value of the wrong type or out of range; names file, key, value and range.
    """
    if "data" in config:
        config = {**config, "data": _with_target(config["data"])} if isinstance(config["data"], Mapping) else config
    found = read_values(config, RUN[""], source, "config")
    for section, checks in RUN.items():
        if section and section in config:
            found[section] = read_values(config[section], checks, source, f"config.{section}")
    if "data" in found:
        extra = {key: value for key, value in config["data"].items() if key not in DATA_KEYS}  # type: ignore[attr-defined]
        if len(extra) > MOST_ARGUMENTS:
            raise RecordError(f"{source}: config.data has {len(extra)} keys of its source; at most {MOST_ARGUMENTS}.")
        limits = dict.fromkeys(extra, tree(scalar, 10_000, depth=5))
        found["data"] |= read_values(extra, limits, source, "config.data")
    return found


MOST_ARGUMENTS = 100
DATA_KEYS = frozenset(field.name for field in dataclasses.fields(DataConfig))


def _with_target(data: Mapping[str, object]) -> dict[str, object]:
    """Convert the `data` group of an older checkpoint, which has `name` and `options`, to `_target_` and arguments."""
    values = dict(data)
    name, options = values.get("name"), values.pop("options", None)
    if "_target_" not in values and isinstance(name, str):
        values["_target_"] = f"{name}.load" if "." in name else f"graft.data.sources.{name}.load"
        values["name"] = None
    if isinstance(options, Mapping):
        values |= options
    return values


def require_trusted(key: str, name: str, source: str, trust: Sequence[str]) -> None:
    """Refuse to import a module that a file names, unless the user has listed its package in `trust`.

    Args:
        key: key that names it, e.g. "data._target_".
        name: dotted, e.g. "my_package.my_set.load".
        source: the file.
        trust: packages listed on the command line.

    Raises:
        ConfigError: the package is not listed; names file, key and the way out.
    """
    if any(name == package or name.startswith(f"{package}.") for package in trust):
        return
    shown = f"{source}: {key}={name!a} is not part of Graft, and modules named by a file are not imported."
    if not MODULE.fullmatch(name):
        raise ConfigError(f"{shown}\nIt is not a valid module name; give another data set: data=… data.root=FOLDER.")
    package = name.partition(".")[0]
    raise ConfigError(f"{shown}\nIf you trust that package as much as a program that you run, add trust=[{package}].")
