"""A logger: metrics.jsonl, one JSON object per line, for `jq`, pandas or a log collector."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class JsonLines(Logger):
    """Appends {"step": N, "NAME": VALUE, …} to a file of the run's folder.

    Any Lightning logger can be added. A resumed run continues the file: lines after the step that it resumes from, and
    an incomplete last line of a run that was killed, are dropped, because the steps after it are logged again.

    Args:
        folder: the run's; Graft supplies it because there is an argument of this name (or `save_dir`).
        resume_step: the optimizer step that the run resumes from, supplied in the same way; None in a new run.
        file: name of the file.
    """

    def __init__(self, folder: Path, resume_step: int | None = None, file: str = "metrics.jsonl") -> None:
        super().__init__()
        self.path = Path(folder) / file
        if resume_step is not None and self.path.is_file():
            self._drop_after(resume_step)

    def _drop_after(self, step: int) -> None:
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if _step(line) <= step]
        rewritten = self.path.with_suffix(".new")
        rewritten.write_text("".join(kept), encoding="utf-8")
        rewritten.replace(self.path)

    @property
    def name(self) -> str:
        return "json_lines"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in .hydra/config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")


def _step(line: str) -> float:
    """The step of a line; infinity where the line is incomplete."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
