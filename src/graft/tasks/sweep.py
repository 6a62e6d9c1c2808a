"""What follows the last job of a sweep."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback


class ShowComparison(Callback):
    """Ends a multirun with its table and the line that opens TensorBoard."""

    def on_multirun_end(self, config: Any, **kwargs: Any) -> None:
        from graft.tasks.compare import show

        folder = Path(config.hydra.sweep.dir)
        if next(folder.rglob("summary.json"), None):
            show(folder, sort="test/acc")
            print(f"\nLook at the runs:  tensorboard --logdir {folder}")
