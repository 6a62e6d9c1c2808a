"""Finding and reading checkpoints: data, never code. Torch is imported when one is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import ConfigError, TrainingError
from graft.system.files import damage_in, why_unreadable
from graft.system.values import Check, integer, mapping, read_values, text

SAFETENSORS = ".safetensors"
BEST = "best.ckpt"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""The checkpoint that a run resumes from, and the one before it."""

MISSING = "missing"


class NotACheckpoint(TrainingError):
    """The file is none that `graft train` has written; it may be a state dict."""


def _state_dict(value: object) -> Mapping[str, object]:
    found: Mapping[str, object] = mapping(value)
    for name in found:
        text()(name)
    return found


CONTENT: dict[str, Check] = {
    "graft": mapping,
    "state_dict": _state_dict,
    "global_step": integer(0, 2**62),
    "epoch": integer(0, 2**62),
}
"""Keys of every checkpoint that Graft reads; the others are Lightning's."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU, read with weights_only=True.

    Raises:
        NotACheckpoint: not written by `graft train`.
        TrainingError: no such file, or damaged; names the file.
        RecordError, WeightsError: a recorded value is out of its range, or a tensor is larger than the file.
    """
    import torch

    from graft.models.bounded import require_stored

    if reason := why_unreadable(path):
        raise TrainingError(f"{path}: no checkpoint ({reason}).")
    if path.suffix == SAFETENSORS:
        raise NotACheckpoint(f"{path}: not a checkpoint written by graft train.")
    damage = damage_in(path)
    if damage is not None:
        raise TrainingError(f"{path}: damaged ({damage}).\n{_way_out(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise NotACheckpoint(f"{path}: not a readable checkpoint ({type(error).__name__}: {error}).") from error
    if not isinstance(content, dict) or "graft" not in content:
        raise NotACheckpoint(f"{path}: not a checkpoint written by graft train.")
    content = {"state_dict": {}, **content}
    read_values(content, CONTENT, str(path))
    require_stored(content, path)
    return content


@dataclass(frozen=True)
class Progress:
    """Progress of a run at a checkpoint.

    Attributes:
        epochs: number of completed epochs.
        steps: number of optimizer steps.
        within_epoch: whether the next epoch had begun.
    """

    epochs: int
    steps: int
    within_epoch: bool


def progress_of(checkpoint: Mapping[str, Any]) -> Progress:
    """The progress recorded in `checkpoint`, one that a run can resume from."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return Progress(epochs["processed"], checkpoint["global_step"], epochs["ready"] > epochs["processed"])


def best_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of the callback that writes the best checkpoint, as `checkpoint` records it; empty without one."""
    states: Mapping[str, Mapping[str, Any]] = checkpoint.get("callbacks", {})
    found = (state for state in states.values() if state.get("monitor") and state.get("best_model_path"))
    return next(found, {})


def _way_out(path: Path) -> str:
    others = [name for name in (LAST, PREVIOUS, BEST) if name != path.name and path.with_name(name).is_file()]
    return f"Next to it there is {' and '.join(others)}." if others else "Use a copy of it, or train again."


def checkpoint_file(value: str, key: str = "checkpoint") -> Path:
    """The checkpoint that a key names: a file, best.ckpt of a run's folder, or weights as on the hub.

    Raises:
        TrainingError: there is no such file.
        NotAvailable: a repository of the Hugging Face hub that is not on this machine and cannot be downloaded.
    """
    if value.startswith("hf:"):
        from graft.models.weights.hugging_face import on_hub  # imports torch

        hub = on_hub(value)
        assert hub is not None
        return hub.fetch(f"checkpoint {value}")
    path = Path(value).expanduser()
    if path.is_dir():
        weights = path / "model.safetensors"
        path = weights if weights.is_file() else path / "checkpoints" / BEST
    if reason := why_unreadable(path):
        raise TrainingError(
            f"{key}={value}: no checkpoint at {path} ({reason}).\n"
            "Give a run's folder, a .ckpt, .pth or .safetensors file, or hf://ORG/NAME."
        )
    return path


def checkpoint_files(value: str | Sequence[str]) -> list[Path]:
    """The checkpoints that `checkpoint=` names, one or a list of them, see `checkpoint_file`.

    Raises:
        TrainingError: there is no such file.
        ConfigError: two of them are the same file.
    """
    files: dict[Path, str] = {}
    for each in [value] if isinstance(value, str) else map(str, value):
        file = checkpoint_file(each)
        if (before := next((named for known, named in files.items() if known.samefile(file)), None)) is not None:
            raise ConfigError(
                f"checkpoint: {before} and {each} are the same file, {file}; it would count twice.\nName each once."
            )
        files[file] = each
    return list(files)


def resume_point(value: str | None, folder: Path) -> Path | None:
    """The checkpoint to resume from; None to start from the beginning.

    Args:
        value: of `resume`: None, "auto" (the run folder's last.ckpt, if there is one), a checkpoint, or a run folder.
        folder: the run folder.

    Raises:
        TrainingError: a path without a checkpoint.
    """
    if value is None:
        return None
    if value == "auto":
        last = folder / "checkpoints" / LAST
        return last if last.is_file() else None
    path = Path(value).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / LAST
    best = path.with_name(BEST)
    if not path.is_file() and path.name == LAST and best.is_file():
        raise TrainingError(
            f"resume={value}: {path.parent} holds {BEST} and no {LAST} (callbacks.keep=best), and no run can continue "
            f"from that.\nmodel.weights={best} begins a new run with its weights."
        )
    if reason := why_unreadable(path):
        raise TrainingError(
            f"resume={value}: no checkpoint at {path} ({reason}).\nGive a run folder, a .ckpt file, or resume=auto."
        )
    return path


def replace_damaged_checkpoint(folder: Path) -> str | None:
    """Replace a run's last.ckpt by the checkpoint before it if it is damaged or missing.

    Returns:
        A note for the user; None if last.ckpt is intact, or there is no checkpoint at all.

    Raises:
        TrainingError: the checkpoint before it is damaged or missing too.
    """
    last, previous = folder / "checkpoints" / LAST, folder / "checkpoints" / PREVIOUS
    fault, before = _fault(last), _fault(previous)
    if fault is None or (fault, before) == (MISSING, MISSING):
        return None
    if before is not None:
        raise TrainingError(
            f"resume=auto: {last} is {fault}, and {PREVIOUS}, the one before it, is {before}.\n"
            "Remove the damaged ones to start from the beginning, or start with the weights of the best epoch: "
            f"model.weights={last.with_name(BEST)}."
        )
    previous.replace(last)
    return f"{LAST} was {fault}: resuming from the checkpoint before it"


def _fault(path: Path) -> str | None:
    damage = damage_in(path) if path.is_file() else None
    return MISSING if not path.is_file() else damage and f"damaged ({damage})"
