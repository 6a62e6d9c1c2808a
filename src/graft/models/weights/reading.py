"""Reading weight files: tensors and plain values, never code (`weights_only=True` or safetensors)."""

import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from graft.data.preprocessing import Preprocessing
from graft.errors import WeightsError
from graft.models.bounded import demand_held
from graft.system.files import damage_of
from graft.system.values import Check, mapping, read_values, sequence, text

log = logging.getLogger("graft")

RUN_CODE_OF = "GRAFT_RUN_CODE_IN_PICKLE"
"""The environment variable that names the one file whose pickle may run code: an old file of somebody who is trusted
as the author of a program is."""

DESCRIBED: dict[str, Check] = {
    "preprocessing": mapping,
    "classes": sequence(text(1000), 100_000),
}
"""What a weight file may say of itself."""

PREFIXES = ("network.", "_orig_mod.", "module.", "model.", "net.", "backbone.")
"""What wrappers (Graft, torch.compile, DataParallel, other people's modules) put before the names of a network."""
WRAPPERS = ("state_dict", "model")


@dataclass(frozen=True)
class Source:
    """A weight file read: its tensors, and what it says of itself.

    `ignored` are names of tensors outside of the wrapped network, such as those of a loss or of an optimizer.
    """

    name: str
    file: Path
    tensors: dict[str, Tensor]
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()


def read_file(file: Path) -> Source:
    """A .safetensors file, or any other as a pickle.

    Raises:
        WeightsError: damaged, holds no state dict, or more than tensors and plain values; names the file.
    """
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)


def _read_safetensors(file: Path) -> Source:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, first_line(error)) from error
    described = {key: _parsed(metadata.get(key)) for key in ("preprocessing", "classes")}
    return _described_source(file, tensors, described)


def _read_pickle(file: Path) -> Source:
    content = _unpickled(file)
    described = content.get("graft", {}) if isinstance(content, Mapping) else {}
    if described and (damage := damage_of(file)):  # of ours; others may have been written without checksums
        raise _damaged(file, damage)
    return _described_source(file, _tensors_of(content, file), described if isinstance(described, Mapping) else {})


def _described_source(file: Path, tensors: dict[str, Tensor], described: Mapping[str, Any]) -> Source:
    known = {key: value for key, value in described.items() if isinstance(value, Mapping | list | tuple)}
    described = read_values(known, DESCRIBED, str(file))  # what is of another kind is somebody else's
    preprocessing = described.get("preprocessing")
    demand_held(tensors, file)
    bare, ignored = _unwrapped(tensors)
    return Source(
        name=str(file),
        file=file,
        tensors=bare,
        ignored=ignored,
        preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing, str(file)),
        classes=described.get("classes") or None,
    )


def _parsed(text: str | None) -> Any:
    """JSON's value, or None for the free text that other people's files hold."""
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
            raise _damaged(file, "its pickle makes no sense") from error
        raise WeightsError(
            f"{file}: refused, because it holds more than tensors and plain values ({forbidden[1]}) and "
            "could run code. Save the network's state_dict() alone, or convert it to .safetensors.\n"
            f"If you trust its author as that of a program you run: {RUN_CODE_OF}={file.absolute()} before the command."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise _damaged(file, first_line(error)) from error


def _may_run_code(file: Path) -> bool:
    named = os.environ.get(RUN_CODE_OF)
    return bool(named) and Path(named or "").expanduser().resolve() == file.resolve()


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a file, be it alone, in a checkpoint, or of a whole network where its code may run."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), nn.Module):
            content = content[key]
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{file}: holds no state dict (a mapping from names to tensors).")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _unwrapped(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the network that wrappers hold, without PREFIXES, and the names of all others."""
    ignored: list[str] = []
    while prefix := next((prefix for prefix in PREFIXES if any(key.startswith(prefix) for key in tensors)), None):
        others = [key for key in tensors if not key.startswith(prefix)]
        ignored += others if prefix != PREFIXES[0] else []  # Graft's own checkpoints have buffers that are no weights
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors, tuple(ignored)


def _damaged(file: Path, reason: str) -> WeightsError:
    return WeightsError(f"{file}: cannot be read, it is damaged or no weight file ({reason}). Fetch it again.")


def first_line(error: Exception) -> str:
    """What `error` says, cut to a line."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
