"""The JSON file next to an exported weight file: its network, class names, preprocessing and run."""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from graft.data.preprocessing import Preprocessing
from graft.errors import WeightsError
from graft.system.files import read_regular, sha256

LARGEST = 2**26
"""Maximum bytes of the JSON file."""


def description_file(file: Path) -> Path:
    """Where `graft export` describes `file`."""
    return file.with_name(f"{file.name}.json")


def description_of(file: Path) -> dict[str, Any]:
    """What the JSON file next to a weight file says: "recipe", "classes", "preprocessing", "run" and "decisions".

    Returns:
        Unchecked values; empty where there is no such file, or one that another program has written.

    Raises:
        WeightsError: it describes another file, by its SHA-256.
    """
    described = description_file(file)
    try:
        content = json.loads(read_regular(described, LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, Mapping) or not isinstance(content.get("sha256"), str) or "classes" not in content:
        return {}
    state = file.stat()
    if content["sha256"] != _sha256(file, state.st_size, state.st_mtime_ns):
        raise WeightsError(
            f"{file}: is not the file that {described} describes (its SHA-256 differs), so its classes may be others."
            f"\nIf it was changed on purpose, remove {described.name} and name the network and its classes: model=… "
            "model.classes=[…]."
        )
    found = {key: content[key] for key in ("classes", "recipe", "run") if key in content}
    found["decisions"] = decisions_in(content)
    if "recipe" not in found and isinstance(content.get("network"), str):
        found["recipe"] = {"name": content["network"]}  # of version 0.1
    keys = [field.name for field in fields(Preprocessing) if field.name in content]
    return found | ({"preprocessing": {key: content[key] for key in keys}} if keys else {})


def decisions_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """The task and the thresholds in what Graft records with weights, as unchecked values."""
    return {key: content[key] for key in ("task", "thresholds") if key in content}


@lru_cache(maxsize=16)
def _sha256(file: Path, size: int, changed: int) -> str:
    return sha256(file)
