"""The words of a command before Hydra parses them: paths and names are taken literally, with any characters.

Hydra's grammar makes numbers of `2024_10` and `1e5` and a bool of `true`, and cannot read `é`, `(` or `~`.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from graft.config import conf_dir
from graft.config.fields import LITERAL, keys_of
from graft.errors import ConfigError

HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir")


def quote_literals(words: Sequence[str], task: str) -> list[str]:
    """The words of a command, each value in quotes that Hydra would change or could not read.

    A value of a path or name is text, except `null`, what is in quotes or brackets already, and with --multirun the
    commas and functions of a sweep. A value of any other key is text where Hydra cannot read it and it names a file.

    Args:
        words: overrides, and options of Hydra.
        task: whose keys they are, e.g. "train".

    Raises:
        ConfigError: a group that the task needs is set to null.
    """
    sweep = any(word in ("-m", "--multirun", "hydra.mode=MULTIRUN") for word in words)
    literal = (_quote_literal(word, task, sweep) for word in words)
    return [*_target_options(words, task), *(word for word in literal if word is not None)]


def _target_options(words: Sequence[str], task: str) -> list[str]:
    """GROUP=target for each GROUP._target_=… alone, so that no argument of the default option is left over."""
    named = [word.lstrip("+").partition("=")[0] for word in words if "=" in word]
    groups = dict.fromkeys(name.removesuffix("._target_") for name in named if name.endswith("._target_"))
    return [
        f"{group}=target"
        for group in groups
        if group not in named and group in _defaults(task) and (conf_dir() / group / "target.yaml").is_file()
    ]


def _quote_literal(word: str, task: str, sweep: bool) -> str | None:
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    if not value or word[0] in "-~'\"":
        return word
    if re.fullmatch(r"[a-z]+", name) and (conf_dir() / name).is_dir():
        return _group_choice(key, value, task)
    path = os.path.expanduser(value)
    exists = os.path.lexists(path)
    if not exists and (value == "null" or value[0] in "'\"[{"):
        return word
    if name not in _literal_keys(task):
        named = exists or value.startswith("~/") or next(glob.iglob(path, recursive=True), None) is not None
        return f"{key}={_quoted(path)}" if named and _parse(value) is None else word
    if sweep and not exists:
        if _is_sweep(value) and "(" in value:
            return word  # choice(a,b), glob(*), …
        return f"{key}={','.join(_as_text(os.path.expanduser(choice)) for choice in value.split(','))}"
    return f"{key}={_as_text(path)}"


def _group_choice(key: str, value: str, task: str) -> str | None:
    """The choice of a group; None where it is null, as the group is in this task without it."""
    if value != "null":
        return f"{key}={_quoted(value) if isinstance(_scalar(value), bool | int | float) else value}"
    group = key.lstrip("+")
    if _defaults(task).get(group, value) is None:
        return None
    options = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))
    raise ConfigError(f"{group}=null: {task} needs an option of this group.\nThere are: {' '.join(options)}")


def _as_text(value: str) -> str:
    """`value`, in quotes unless Hydra reads it as just this text without them."""
    return value if _scalar(value) == value else _quoted(value)


def _scalar(value: str) -> Any:
    """What Hydra reads in `value`; None in a sweep, and where it cannot read it."""
    parsed = _parse(value)
    return None if parsed is None or parsed.is_sweep_override() else parsed.value()


def _is_sweep(value: str) -> bool:
    parsed = _parse(value)
    return parsed is not None and bool(parsed.is_sweep_override())


def _parse(value: str) -> Any:
    """What Hydra makes of `value`, an Override; None where it cannot read it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def _quoted(value: str) -> str:
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


@cache
def _literal_keys(task: str) -> frozenset[str]:
    from graft.config.registration import SCHEMAS

    return frozenset((*HYDRA_PATHS, *(key for key, _, metadata in keys_of(SCHEMAS[task]) if LITERAL in metadata)))


@cache
def _defaults(task: str) -> Mapping[str, Any]:
    """Group → option in the defaults list of a task."""
    from omegaconf import OmegaConf

    entries: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{task}.yaml").defaults)
    return {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
