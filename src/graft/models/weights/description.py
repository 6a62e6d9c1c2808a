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
    content = _json(described)
    if not isinstance(content.get("sha256"), str) or "classes" not in content:
        return description_of_repository(_json(file.with_name("config.json")))
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


def _json(file: Path) -> Mapping[str, Any]:
    """The mapping in a JSON file; empty where there is none."""
    try:
        content = json.loads(read_regular(file, LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


def description_of_repository(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json of a repository of the Hugging Face hub says about the weights next to it.

    It is Graft's, under the key "graft", or timm's: architecture, names of the classes and pretrained_cfg.

    Returns:
        As `description_of`; empty for that of another library.
    """
    own = config.get("graft")
    if isinstance(own, Mapping):
        found = {key: own[key] for key in ("recipe", "classes", "preprocessing", "run") if key in own}
        return found | {"decisions": decisions_in(own)}
    if not isinstance(config.get("architecture"), str):
        return {}
    found = {"recipe": {"name": config["architecture"], "family": "timm"}}
    trained = config.get("pretrained_cfg")
    names = config.get("label_names") or (trained.get("label_names") if isinstance(trained, Mapping) else None)
    if isinstance(names, list):
        found["classes"] = names
    if isinstance(trained, Mapping) and (preprocessing := _preprocessing_of_timm(trained)):
        found["preprocessing"] = preprocessing
    return found


def _preprocessing_of_timm(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing in timm's pretrained_cfg; empty if it is incomplete, or not of square RGB images."""
    try:
        channels, height, width = trained["input_size"]
        resized = int(height / (trained.get("crop_pct") or 0.875))
        kept = {key: trained[key] for key in ("mean", "std", "interpolation")}
    except (KeyError, TypeError, ValueError):
        return {}
    squashed = trained.get("crop_mode") in ("squash", "border")
    size = {"input_size": height, "resize_size": resized, "fit": "squash" if squashed else "crop"}
    return size | kept if channels == 3 and height == width else {}


@lru_cache(maxsize=16)
def _sha256(file: Path, size: int, changed: int) -> str:
    return sha256(file)
