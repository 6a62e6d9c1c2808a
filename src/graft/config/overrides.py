"""Prepares the arguments of a command for Hydra's parser: literal paths and names, positional paths.

Hydra's grammar reads `2024_10` and `1e5` as numbers and `true` as a boolean, and cannot parse `é`, `(` or `~`.
"""

import glob
import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from graft.config import conf_dir
from graft.config.fields import LISTED, LITERAL, keys_of
from graft.config.targets import arguments_of
from graft.errors import ConfigError

HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir")

LIST_ELEMENT = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^,]+")
"""An element of a list on the command line: text in quotes, or up to the next comma."""

POSITIONAL: Mapping[str, str | None] = {
    "predict": "source",
    "evaluate": "checkpoint",
    "export": "checkpoint",
    "compare": "runs",
    "soup": "runs",
}
"""Command -> the key that an argument without a key sets, e.g. `graft predict photo.jpg`."""

RUN_KEYS: Mapping[str, str] = {"inspect": "checkpoint", "improve": "run"}
"""Command whose argument without a key is a data set or a run -> the key of the run."""

OPTIONS_WITH_VALUE = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd",
                      "--config-dir", "-i", "--info")  # fmt: skip
"""Options of Hydra that are followed by a value."""


def quote_literals(words: Sequence[str], task: str) -> list[str]:
    """Quote the values that Hydra would change or could not parse.

    The value of a path, a name, or a text argument of a data source is text, except `null`, text in quotes or brackets
    (in a list of paths the elements are text), `true` and `false` as arguments, and with --multirun the commas and
    functions of a sweep. The value of any other key is text if Hydra cannot parse it and it is the path of a file.
    An argument without a key sets the key in `POSITIONAL`.

    Args:
        words: overrides and options of Hydra.
        task: the command, e.g. "train".

    Raises:
        ConfigError: a group that the command needs is set to null, an argument without a key in a command that has
            none, or a list of GPUs.
    """
    words = _with_keys(words, task)
    sweep = any(word in ("-m", "--multirun", "hydra.mode=MULTIRUN") for word in words)
    texts = _text_arguments(words, task)
    literal = (_quote_literal(word, task, sweep, texts) for word in words)
    return [*_target_options(words, task), *(word for word in literal if word is not None)]


def _with_keys(words: Sequence[str], task: str) -> list[str]:
    """Replace arguments without a key, e.g. photo.jpg by source=photo.jpg."""
    options = {index for index, word in enumerate(words) if word in OPTIONS_WITH_VALUE}
    paths = {
        index: word
        for index, word in enumerate(words)
        if word and "=" not in word and word[0] not in "-~" and index - 1 not in options
    }
    if not paths:
        return list(words)
    key, listed = POSITIONAL.get(task), " ".join(paths.values())
    if task in RUN_KEYS:
        key = _data_or_run(next(iter(paths.values())), RUN_KEYS[task])
    if key is None:
        raise ConfigError(f"{listed}: not an override.\nWrite key=value; graft {task} --help lists the keys.")
    if any(word.startswith(f"{key}=") for word in words):
        raise ConfigError(f"{listed}: {key}=… is given, too.\nGive one of them.")
    if len(paths) > 1 and key != "source" and key not in _literal_keys(task, LISTED):
        raise ConfigError(f"{listed}: graft {task} takes one path.\nGive one, as {key}=PATH.")
    quoted = ",".join(quoted_text(os.path.expanduser(path)) for path in paths.values())
    others = [word for index, word in enumerate(words) if index not in paths]
    if key == "data.root" and not any(word.startswith("data=") for word in others):
        others.insert(0, "data=folder")
    return [*others, f"{key}=[{quoted}]" if len(paths) > 1 else f"{key}={quoted}"]


def _data_or_run(path: str, run_key: str) -> str:
    """The key that a path sets: data.root for a folder without a run, else `run_key`."""
    folder = Path(path).expanduser()
    is_run = (folder / "checkpoints").is_dir() or (folder / "summary.json").is_file()
    return "data.root" if folder.is_dir() and not is_run else run_key


def _target_options(words: Sequence[str], task: str) -> list[str]:
    """Add GROUP=target to GROUP._target_=… without GROUP=…, so that no argument of the default option remains."""
    named = [word.lstrip("+").partition("=")[0] for word in words if "=" in word]
    groups = dict.fromkeys(name.removesuffix("._target_") for name in named if name.endswith("._target_"))
    return [
        f"{group}=target"
        for group in groups
        if group not in named and group in _defaults(task) and (conf_dir() / group / "target.yaml").is_file()
    ]


def _text_arguments(words: Sequence[str], task: str) -> frozenset[str]:
    """Keys of the arguments of the chosen data source that take text."""
    values = dict(word.lstrip("+").partition("=")[::2] for word in words if "=" in word)
    target = values.get("data._target_")
    if target is None:
        from omegaconf import OmegaConf

        file = conf_dir() / "data" / f"{values.get('data', _defaults(task).get('data'))}.yaml"
        target = str(OmegaConf.select(OmegaConf.load(file), "_target_")) if file.is_file() else ""
    arguments = arguments_of(target) if any(key.startswith("data.") for key in values) and "." in target else None
    return frozenset(f"data.{name}" for name in arguments.text) if arguments is not None else frozenset()


def _quote_literal(word: str, task: str, sweep: bool, texts: Collection[str]) -> str | None:
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    if name == "trainer.devices" and not sweep and re.fullmatch(r"\[\d*(,\d+)*\]|\d+(,\d+)+", value):
        numbers = re.findall(r"\d+", value)
        raise ConfigError(
            f"{word}: must be a number of devices.\nTo choose the GPUs, set the environment variable "
            f"CUDA_VISIBLE_DEVICES={','.join(numbers)} and trainer.devices={len(numbers)}."
        )
    if not value or word[0] in "-~'\"":
        return word
    if re.fullmatch(r"[a-z]+", name) and (conf_dir() / name).is_dir():
        return _group_choice(key, value, task)
    path = os.path.expanduser(value)
    exists = os.path.lexists(path)
    if not (exists or sweep) and name in _literal_keys(task, LISTED) and re.fullmatch(r"\[.+\]", value):
        elements = (element.strip() for element in LIST_ELEMENT.findall(value[1:-1]))
        quoted = (each if each[:1] in ("'", '"') else _as_text(os.path.expanduser(each)) for each in elements)
        return f"{key}=[{','.join(quoted)}]"
    if not exists and (value == "null" or value[0] in "'\"[{"):
        return word
    if name in texts and value in ("true", "false"):
        return word
    if name not in _literal_keys(task) and name not in texts:
        named = exists or value.startswith("~/") or next(glob.iglob(path, recursive=True), None) is not None
        return f"{key}={quoted_text(path)}" if named and _parse(value) is None else word
    if sweep and not exists:
        if _is_sweep(value) and "(" in value:
            return word  # choice(a,b), glob(*), …
        return f"{key}={','.join(_as_text(os.path.expanduser(choice)) for choice in value.split(','))}"
    return f"{key}={_as_text(path)}"


def _group_choice(key: str, value: str, task: str) -> str | None:
    """Quote the option of a group if it looks like a number; None if it is null, as in the defaults of the command."""
    if value != "null":
        return f"{key}={quoted_text(value) if isinstance(_scalar(value), bool | int | float) else value}"
    group = key.lstrip("+")
    if _defaults(task).get(group, value) is None:
        return None
    options = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    raise ConfigError(f"{group}=null: {task} needs an option of this group.\nThere are: {' '.join(options)}")


def _as_text(value: str) -> str:
    """Quote `value` unless Hydra parses it as the same text without quotes."""
    return value if _scalar(value) == value else quoted_text(value)


def _scalar(value: str) -> Any:
    """The value that Hydra parses; None for a sweep and for what it cannot parse."""
    parsed = _parse(value)
    return None if parsed is None or parsed.is_sweep_override() else parsed.value()


def _is_sweep(value: str) -> bool:
    parsed = _parse(value)
    return parsed is not None and bool(parsed.is_sweep_override())


def _parse(value: str) -> Any:
    """The Override that Hydra parses from `value`; None if it cannot parse it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def quoted_text(value: str) -> str:
    """`value` in quotes, as Hydra's grammar reads it."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


@cache
def _literal_keys(task: str, mark: str = LITERAL) -> frozenset[str]:
    """The keys of a command whose values are text; with LISTED those that take a list of texts, too."""
    from graft.config.registration import SCHEMAS

    hydras = HYDRA_PATHS if mark == LITERAL else ()
    return frozenset((*hydras, *(key for key, _, metadata in keys_of(SCHEMAS[task]) if mark in metadata)))


@cache
def _defaults(task: str) -> Mapping[str, Any]:
    """Group -> option in the defaults list of a command, and in those of the command that it extends."""
    from omegaconf import OmegaConf

    entries: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{task}.yaml").defaults)
    found: dict[str, Any] = {}
    for entry in entries:
        if isinstance(entry, dict):
            found |= entry
        elif (conf_dir() / f"{entry}.yaml").is_file():
            found |= _defaults(entry)
    return found
