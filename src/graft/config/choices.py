"""The choices that identify a run in tables: the option of each group, and every key that can change its figures."""

from collections.abc import Mapping
from typing import Any

from graft.config.config_hash import WITHOUT_EFFECT, flat, matches
from graft.config.targets import TARGET, short_name

REPEATED = ("seed", "data.fold", "data.root", "cache.mode")
"""Keys in which repetitions of one experiment differ."""


def choices(config: Mapping[str, Any], picked: Mapping[str, str]) -> dict[str, Any]:
    """The choices that identify a run, the same for all repetitions of one experiment.

    Args:
        config: the resolved configuration, as plain containers.
        picked: Hydra's choice of each group, e.g. {"augment": "basic"}.
    """
    named = {group: config[group]["name"] for group in ("model", "data", "strategy")}
    named |= {
        group: _name_of(config[group].get(TARGET), picked.get(group)) for group in ("optimizer", "scheduler", "loss")
    }
    named["freeze"] = short_name(config["freeze"][TARGET])
    named |= {group: option for group in ("augment", "experiment") if (option := picked.get(group))}
    ignored = (*WITHOUT_EFFECT, *REPEATED)
    return named | {
        key: value for key, value in flat(config) if not matches(key, ignored) and not key.endswith((".name", TARGET))
    }


def _name_of(target: str | None, option: str | None) -> str:
    """Name of a part in tables: its option, or the last part of its target if it was chosen by that."""
    if option not in (None, "target"):
        return str(option)
    return "none" if target is None else short_name(target)
