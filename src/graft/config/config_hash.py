"""Hash of a configuration, equal for runs that must have the same results."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graft.config.registration import plain
from graft.config.schema import TrainConfig
from graft.system.files import read_regular

WITHOUT_EFFECT = (
    "resume",
    "sweep_name",
    "search.",
    "paths.",
    "download.",
    "review.",
    "logger.",
    "callbacks.progress",
    "callbacks.checkpoint_every_n_steps",
    "callbacks.keep",
    "data.num_workers",
    "data.timeout",
    "data.download",
    "data.resident_gb",
    "cache.max_gb",
    "strategy.cached_views",
    "trainer.log_every_n_steps",
)
"""Keys that do not change the results of a run on a CPU; on a GPU, data.resident_gb changes how crops are rounded."""


def config_hash(cfg: TrainConfig) -> str:
    """Hash of every key that can change a result, in 16 hexadecimal digits; equal hashes mean equal runs.

    data.corrections counts by the content of the file.
    """
    keys = {key: value for key, value in flat(plain(cfg)) if not matches(key, WITHOUT_EFFECT)}
    if cfg.data.corrections is not None:
        with contextlib.suppress(OSError):  # reported where the file is read
            content = read_regular(Path(cfg.data.corrections).expanduser())
            keys["data.corrections"] = hashlib.sha256(content).hexdigest()
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]


def matches(key: str, parts: Iterable[str]) -> bool:
    """Whether `key` is in `parts`, or starts with one that ends in a dot."""
    return any(key.startswith(part) if part.endswith(".") else key == part for part in parts)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the leaves of nested mappings with their dotted keys, e.g. ("optimizer.lr", 0.1)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
