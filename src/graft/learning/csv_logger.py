"""Logger that writes metrics.csv: one row per step, one column per metric."""

import io
import logging
import math
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from graft.errors import DataError
from graft.learning.metrics_csv import Row, read_metrics
from graft.system.escaping import CsvWriter
from graft.system.files import write_atomically

log = logging.getLogger("graft")


class TableLogger(Logger):
    """Writes `path` with the columns "step", "epoch" and the metrics in order of first appearance, one row per step.

    All metrics of a step are in one row, regardless of their order. A row is appended when the next step is logged at
    the latest; the whole file is rewritten atomically when a metric first appears or a finished step gets more
    metrics. A resumed run drops the rows after the step that it resumes from.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = ["step", "epoch"]
        self._rows: dict[int, Row] = {}
        self._written = 0
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            table = read_metrics(self.path)
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{self.path}: {reason}.\nMove it away; the run's checkpoints do not need it.") from error
        self._columns = table.columns or self._columns
        self._rows = {int(row["step"]): row for row in table.rows}
        self._written = len(self._rows)
        if table.torn:
            log.warning("note  %s: its last line is incomplete and is dropped", self.path)
        if table.damaged:
            copy = self.path.with_suffix(".damaged.csv")
            shutil.copyfile(self.path, copy)
            log.warning("note  %s: damaged lines are dropped (%d); they are kept in %s", self.path, table.damaged, copy)
        if table.torn or table.damaged:
            self._written = -1

    def resume_after(self, step: int) -> None:
        """Drop the rows after optimizer step `step`, which a resumed run logs again."""
        self._rows = {key: row for key, row in self._rows.items() if key <= step}
        self._written = -1

    @property
    def name(self) -> str:
        return "table"

    @property
    def version(self) -> str:
        return ""

    @property
    def rows(self) -> list[Row]:
        """All rows, in order of their steps."""
        return [self._rows[step] for step in sorted(self._rows)]

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration has its own file, .hydra/config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        step = step or 0
        if step not in self._rows:
            self.save()  # earlier steps are complete, and Lightning saves only at the end of an epoch
        if step in self._rows and len(self._rows) <= self._written:
            self._written = -1  # a row on disk changes
        for name in metrics:
            if name not in self._columns:
                self._columns.append(name)
                self._written = -1
        self._rows.setdefault(step, {"step": step}).update(metrics)

    @rank_zero_only
    def save(self) -> None:
        if self._written == len(self._rows):
            return
        if self._written < 0:
            text = self._header() + "".join(map(self._line, self.rows))
            write_atomically(self.path, text.encode())
        else:
            new = not self.path.exists()
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(self._header() if new else "")
                new_rows = islice(reversed(self._rows.values()), len(self._rows) - self._written)  # they come in order
                file.writelines(map(self._line, reversed([*new_rows])))
        self._written = len(self._rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    def _header(self) -> str:
        """The names of the columns, quoted where a class has a comma or a quotation mark in its name."""
        text = io.StringIO()
        CsvWriter(text).writerow(self._columns)
        return text.getvalue()

    def _line(self, row: Row) -> str:
        return ",".join(_text(row[name]) if name in row else "" for name in self._columns) + "\n"


def _text(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e15 else repr(float(value))
