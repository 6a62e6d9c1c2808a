"""Finding and reading checkpoints: data, never code. Torch is imported when one is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.errors import TrainingError
from graft.system.files import damage_in, why_unreadable
from graft.system.values import Check, integer, mapping, read_values, text

BEST = "best.ckpt"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
"""What a run goes on from, and the one before it."""

MISSING = "missing"


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
"""What is in every checkpoint; the rest is Lightning's."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU, read with weights_only=True.

    Raises:
        TrainingError: no such file, not a checkpoint of ours, or damaged; names the file.
        RecordError, WeightsError: it says what it cannot be, or claims tensors that it does not hold.
    """
    import torch

    from graft.models.bounded import require_stored

    if reason := why_unreadable(path):
        raise TrainingError(f"{path}: no checkpoint ({reason}).")
    damage = damage_in(path)
    if damage is not None:
        raise TrainingError(f"{path}: damaged ({damage}).\n{_way_out(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise TrainingError(f"{path}: not a readable checkpoint ({type(error).__name__}: {error}).") from error
    if not isinstance(content, dict) or "graft" not in content:
        raise TrainingError(f"{path}: not a checkpoint written by graft train.")
    content = {"state_dict": {}, **content}
    read_values(content, CONTENT, str(path))
    require_stored(content, path)
    return content


@dataclass(frozen=True)
class Progress:
    """How far a run was when it wrote a checkpoint.

    Attributes:
        epochs: those it had completed.
        steps: optimizer steps.
        within_epoch: it was within the next epoch.
    """

    epochs: int
    steps: int
    within_epoch: bool


def progress_of(checkpoint: Mapping[str, Any]) -> Progress:
    """How far the run was that wrote `checkpoint`, one that a run can resume from."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return Progress(epochs["processed"], checkpoint["global_step"], epochs["ready"] > epochs["processed"])


def best_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `checkpoint` says of the best one: the state of the callback that wrote it; empty where there is none."""
    states: Mapping[str, Mapping[str, Any]] = checkpoint.get("callbacks", {})
    found = (state for state in states.values() if state.get("monitor") and state.get("best_model_path"))
    return next(found, {})


def _way_out(path: Path) -> str:
    others = [name for name in (LAST, PREVIOUS, "best.ckpt") if name != path.name and path.with_name(name).is_file()]
    return f"Beside it there is {' and '.join(others)}." if others else "Take a copy of it, or train again."


def checkpoint_file(wanted: str) -> Path:
    """The checkpoint that `checkpoint=` names: a file, or a run's folder, of which it is the best one.

    Raises:
        TrainingError: there is none at that place.
    """
    path = Path(wanted).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
    if reason := why_unreadable(path):
        raise TrainingError(
            f"checkpoint={wanted}: no checkpoint at {path} ({reason}).\nGive a .ckpt file or a run's folder."
        )
    return path


def resume_point(wanted: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from: none, `auto` (this run folder's last.ckpt, if there is one), a checkpoint, or a
    run folder.

    Raises:
        TrainingError: a path that holds no checkpoint.
    """
    if wanted is None:
        return None
    if wanted == "auto":
        last = folder / "checkpoints" / LAST
        return last if last.is_file() else None
    path = Path(wanted).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / LAST
    best = path.with_name(BEST)
    if not path.is_file() and path.name == LAST and best.is_file():
        raise TrainingError(
            f"resume={wanted}: {path.parent} holds {BEST} and no {LAST} (callbacks.keep=best), and no run can continue "
            f"from that.\nmodel.weights={best} begins a new run with its weights."
        )
    if reason := why_unreadable(path):
        raise TrainingError(
            f"resume={wanted}: no checkpoint at {path} ({reason}).\nGive a run folder, a .ckpt file, or resume=auto."
        )
    return path


def fall_back(folder: Path) -> str | None:
    """Where a run's last.ckpt is damaged, or was being replaced, let the one before it take its place.

    Returns:
        What to tell of it; None where last.ckpt is sound, or there is none at all.

    Raises:
        TrainingError: it is damaged and so is the one before it, or there is none.
    """
    last, previous = folder / "checkpoints" / LAST, folder / "checkpoints" / PREVIOUS
    fault, before = _fault(last), _fault(previous)
    if fault is None or (fault, before) == (MISSING, MISSING):
        return None
    if before is not None:
        raise TrainingError(
            f"resume=auto: {last} is {fault}, and {PREVIOUS}, the one before it, is {before}.\n"
            "Remove the damaged ones to begin anew, or begin with the weights of the best epoch: "
            f"model.weights={last.with_name('best.ckpt')}."
        )
    previous.replace(last)
    return f"{LAST} was {fault}: going on from the checkpoint before it"


def _fault(path: Path) -> str | None:
    damage = damage_in(path) if path.is_file() else None
    return MISSING if not path.is_file() else damage and f"damaged ({damage})"
