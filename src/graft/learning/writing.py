"""Writing checkpoints: whole or not at all."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from graft.files import writing_atomically


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the old checkpoint and renames, so that a kill at any moment leaves the old one or the new one.

    Lightning's own writer moves the file from the folder for temporary files, which is a copy where that is another
    file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        for part in Path(path).parent.glob(f".{Path(path).name}.*.part"):
            part.unlink(missing_ok=True)  # of one that was killed
        with writing_atomically(Path(path)) as file:
            torch.save(checkpoint, file)
