"""Finding and reading checkpoints: data, never code. Torch is imported when one is read."""

from pathlib import Path
from typing import Any

from graft.errors import TrainingError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU, read with weights_only=True.

    Raises:
        TrainingError: no such file, not a checkpoint of ours, or damaged; names the file.
    """
    import torch

    if not path.is_file():
        raise TrainingError(f"{path}: no such checkpoint.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise TrainingError(f"{path}: not a readable checkpoint ({type(error).__name__}: {error}).") from error
    if not isinstance(content, dict) or "graft" not in content:
        raise TrainingError(f"{path}: not a checkpoint written by graft train.")
    return content


def checkpoint_file(wanted: str) -> Path:
    """The checkpoint that `checkpoint=` names: a file, or a run's folder, of which it is the best one.

    Raises:
        TrainingError: there is none at that place.
    """
    path = Path(wanted).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise TrainingError(f"checkpoint={wanted}: no checkpoint at {path}.\nGive a .ckpt file or a run's folder.")
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
        last = folder / "checkpoints" / "last.ckpt"
        return last if last.is_file() else None
    path = Path(wanted)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise TrainingError(
            f"resume={wanted}: no checkpoint at {path}.\nGive a run folder, a .ckpt file, or resume=auto."
        )
    return path
