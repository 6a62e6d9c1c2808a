"""Reading weight files: tensors and plain values, never code (`weights_only=True` or safetensors)."""

import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from graft.data.preprocessing import Preprocessing
from graft.errors import WeightsError
from graft.models.bounded import require_stored
from graft.models.weights.description import decisions_in, description_of
from graft.system.files import damage_in
from graft.system.values import Check, mapping, read_values, sequence, text

log = logging.getLogger("graft")

RUN_CODE_OF = "GRAFT_RUN_CODE_IN_PICKLE"
"""The environment variable that names the one file whose pickle may run code, as a program by its author would."""

DESCRIBED: dict[str, Check] = {
    "preprocessing": mapping,
    "classes": sequence(text(1000), 100_000),
    "recipe": mapping,
    "run": mapping,
    "decisions": mapping,
}
"""The description in a weight file, or in the JSON file next to it."""

PREFIXES = ("network.", "_orig_mod.", "module.", "model.", "net.", "backbone.")
"""Prefixes that wrappers (Graft, torch.compile, DataParallel, other modules) add to the names of a network."""
WRAPPERS = ("state_dict", "model")


@dataclass(frozen=True)
class Source:
    """The content of a weight file: its tensors and its description.

    `ignored` are names of tensors outside of the wrapped network, such as those of a loss or an optimizer. `recipe` and
    `run` describe the network and the run, and `decisions` its task and thresholds, as unchecked values.
    """

    name: str
    file: Path
    tensors: dict[str, Tensor]
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()
    recipe: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None
    decisions: Mapping[str, Any] = field(default_factory=dict)


def read_file(file: Path) -> Source:
    """A .safetensors file, or any other as a pickle, with the description in it or in the JSON file next to it.

    Raises:
        WeightsError: damaged, without a state dict, or with more than tensors and plain values; names the file.
    """
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_safetensors(file: Path) -> Source:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, first_line(error)) from error
    described = {key: _parsed(metadata.get(key)) for key in ("recipe", "preprocessing", "classes", "decisions")}
    return _described_source(file, tensors, described)


def _read_pickle(file: Path) -> Source:
    content = _unpickled(file)
    described = content.get("graft", {}) if isinstance(content, Mapping) else {}
    if described and (damage := damage_in(file)):  # Graft's own; others may have been written without checksums
        raise _damaged(file, damage)
    described = described if isinstance(described, Mapping) else {}
    return _described_source(file, _tensors_of(content, file), {**described, "decisions": decisions_in(described)})


def _described_source(file: Path, tensors: dict[str, Tensor], described: Mapping[str, Any]) -> Source:
    known = {key: value for key, value in described.items() if isinstance(value, Mapping | list | tuple)}
    beside = description_of(file)
    known = beside | {key: value for key, value in known.items() if value or key not in beside}
    described = read_values(known, DESCRIBED, str(file))  # a value of another kind is another program's
    preprocessing = described.get("preprocessing")
    require_stored(tensors, file)
    bare, ignored = _unwrapped(tensors)
    return Source(
        name=str(file),
        file=file,
        tensors=bare,
        ignored=ignored,
        preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing, str(file)),
        classes=described.get("classes") or None,
        recipe=described.get("recipe"),
        run=described.get("run"),
        decisions=described.get("decisions", {}),
    )


def _parsed(text: str | None) -> Any:
    """The JSON value, or None for the free text in other programs' files."""
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _unpickled(file: Path) -> Any:
    if _may_run_code(file):
        log.warning("%s=%s: the code in this file is run", RUN_CODE_OF, file)
        return torch.load(file, map_location="cpu", weights_only=False)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden is None:
            raise _damaged(file, "its pickle is invalid") from error
        raise WeightsError(
            f"{file}: refused, because it contains more than tensors and plain values ({forbidden[1]}) and "
            "could run code. Save the network's state_dict() alone, or convert it to .safetensors.\n"
            f"If you trust its author to run code on this machine: {RUN_CODE_OF}={file.absolute()} before the command."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise _damaged(file, first_line(error)) from error


def _may_run_code(file: Path) -> bool:
    named = os.environ.get(RUN_CODE_OF)
    return bool(named) and Path(named or "").expanduser().resolve() == file.resolve()


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a file: by itself, in a checkpoint, or of a pickled network where its code may run."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), nn.Module):
            content = content[key]
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{file}: contains no state dict (a mapping from names to tensors).")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _unwrapped(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a wrapped network, without PREFIXES, and the names of all others."""
    ignored: list[str] = []
    while prefix := next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in tensors)), None):
        others = [key for key in tensors if not key.startswith(prefix)]
        ignored += others if prefix != PREFIXES[0] else []  # Graft's checkpoints have buffers besides the network's
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors, tuple(ignored)


def _damaged(file: Path, reason: str) -> WeightsError:
    return WeightsError(f"{file}: cannot be read; it is damaged or not a weight file ({reason}). Download it again.")


def first_line(error: Exception) -> str:
    """The first line of the message of `error`."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
