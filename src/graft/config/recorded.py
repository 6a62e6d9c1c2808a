"""What a checkpoint says of its run, as data: only the keys below are read, and no name is imported unasked."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from graft.config.checks import VIEWS
from graft.config.schema import DataConfig
from graft.errors import ConfigError
from graft.system.values import (
    Check,
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
    tree,
)

MOST = 2**31 - 1

PRECISIONS = ("16", "bf16", "32", "64")

LIMIT: Check = optional(either(integer(0, MOST), number(0, 1)))
"""trainer.limit_*_batches."""

RUN: dict[str, dict[str, Check]] = {
    "": {"seed": integer(0, 2**32 - 1), "tta": flag, "views": sequence(among(*VIEWS), 100, least=1)},
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
        "on_error": among("raise", "skip"),
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
"""What decides a checkpoint's figures when it is evaluated; everything else is the command's own."""

MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def recorded_run(config: Mapping[str, object], source: str) -> dict[str, Any]:
    """The part of a run's configuration that its checkpoint is used with, as plain values within their limits.

    Args:
        config: as the checkpoint holds it; keys that are not read, as another version's, are no obstacle.
        source: the checkpoint's file, for messages.

    Raises:
        RecordError: a value of another type or beyond its limit; names file, key, value and limit.
    """
    if "data" in config:
        config = {**config, "data": _with_target(config["data"])} if isinstance(config["data"], Mapping) else config
    found = read_values(config, RUN[""], source, "config")
    for section, checks in RUN.items():
        if section and section in config:
            found[section] = read_values(config[section], checks, source, f"config.{section}")
    if "data" in found:
        extra = {key: value for key, value in config["data"].items() if key not in DATA_KEYS}  # type: ignore[attr-defined]
        limits = {"data": tree(scalar, 10_000, depth=5)}
        found["data"] |= read_values({"data": extra}, limits, source, "config")["data"]
    return found


DATA_KEYS = frozenset(field.name for field in dataclasses.fields(DataConfig))


def _with_target(data: Mapping[str, object]) -> dict[str, object]:
    """The `data` group of a checkpoint; older ones name the source by `name` and its arguments by `options`."""
    values = dict(data)
    name, options = values.get("name"), values.pop("options", None)
    if "_target_" not in values and isinstance(name, str):
        values["_target_"] = f"{name}.load" if "." in name else f"graft.data.sources.{name}.load"
        values["name"] = None
    if isinstance(options, Mapping):
        values |= options
    return values


def demand_trust(key: str, name: str, source: str, trust: Sequence[str]) -> None:
    """Refuse to import a module that a file names, unless the user trusts its package.

    Args:
        key: what names it, e.g. "data._target_".
        name: dotted, e.g. "my_package.my_set.load".
        source: the file.
        trust: the packages that the user's own command line names.

    Raises:
        ConfigError: not among them; names file, key and the way out.
    """
    if any(name == package or name.startswith(f"{package}.") for package in trust):
        return
    shown = f"{source}: {key}={name!a} is not one of Graft's own, and what a file names is not imported."
    if not MODULE.fullmatch(name):
        raise ConfigError(f"{shown}\nIt is no name of a module either; give another data set: data=… data.root=FOLDER.")
    package = name.partition(".")[0]
    raise ConfigError(f"{shown}\nIf you trust that package as a program that you run: trust=[{package}].")
