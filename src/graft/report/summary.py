"""summary.json as a typed value, every field checked when it is read."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from graft.errors import DataError
from graft.system.files import read_regular

FILE = "summary.json"

LARGEST = 2**24
"""Largest size of a summary in bytes; with ten thousand classes it has a tenth of that."""

MOST_KEYS, MOST_FIGURES, DEEPEST = 2_000, 200_000, 8
"""Largest number of keys of a configuration, of metrics, and of nested levels in a value of the configuration."""

UNFINISHED = ("failed", "interrupted")

Value = TypeVar("Value")
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class Summary:
    """The summary of a run.

    Attributes:
        folder: of the run.
        status: "finished", "failed", "interrupted" or "pruned".
        metrics: name → value; NaN and infinity occur.
        config: the configuration under dotted keys, without the seed.
        epochs: number of epochs trained.
        attempts: number of times the run was started or resumed.
        identity: the hash of its configuration (`config.identity`).
        overrides: the overrides of its command.
        checkpoint: the best one, relative to `folder`; None if none is kept.
        classes: names, by index; empty if the run failed before its data were read.
        content: the hash of its data set before the split; empty if unknown.
        fingerprint: the hash of its data set with the split.
        root: `data.root`.
        validates_on_test: whether validation and test images are the same; None if unknown.
        corrections: number of images that data.corrections has "relabelled" and "excluded"; empty without it.
        higher_is_better: name of a configured metric → its direction, where it is known.
    """

    folder: Path
    status: str
    seed: int
    seconds: float
    metrics: Mapping[str, float]
    config: Mapping[str, Json] = field(default_factory=dict)
    fold: int | None = None
    epochs: int = 0
    attempts: int = 0
    identity: str = ""
    error: str = ""
    overrides: tuple[str, ...] = ()
    checkpoint: str | None = None
    classes: tuple[str, ...] = ()
    content: str = ""
    fingerprint: str = ""
    root: str | None = None
    validates_on_test: bool | None = None
    corrections: Mapping[str, int] = field(default_factory=dict)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)

    @property
    def unfinished(self) -> bool:
        """Whether the same command would run it again."""
        return self.status in UNFINISHED

    @classmethod
    def of(cls, raw: object, folder: Path) -> "Summary":
        """The summary that `raw`, the content of a JSON file, is of the run in `folder`.

        Raises:
            DataError: a key is missing, or has a value that no run writes; names it.
        """
        fields = _typed(raw, dict, "the file")
        data = _get(fields, "data", dict, {})
        seconds = _get(fields, "seconds", float)
        if not 0 <= seconds < math.inf:
            raise DataError(f"seconds={seconds}: no duration")
        checkpoint = _get(fields, "checkpoint", str, None)
        if checkpoint is not None and (Path(checkpoint).is_absolute() or ".." in Path(checkpoint).parts):
            raise DataError(f"checkpoint={checkpoint[:80]}: not within the folder of the run")
        started = _get(fields, "started", str, None)
        if started is not None:
            _check_time(started)
        return cls(
            folder=folder,
            status=_get(fields, "status", str),
            seed=_get(fields, "seed", int),
            seconds=seconds,
            metrics=_figures(_get(fields, "metrics", dict)),
            config=_configuration(_get(fields, "config", dict, {})),
            fold=_get(fields, "fold", int, None),
            epochs=_get(fields, "epochs", int, 0),
            attempts=_get(fields, "attempts", int, 0),
            identity=_get(fields, "identity", str, ""),
            error=_get(fields, "error", str, ""),
            overrides=_texts(_get(fields, "overrides", list, []), "overrides"),
            checkpoint=checkpoint,
            classes=_texts(_get(fields, "classes", list, []), "classes"),
            content=_get(data, "content", str, ""),
            fingerprint=_get(data, "fingerprint", str, ""),
            root=_get(data, "root", str, None),
            validates_on_test=_get(data, "validates_on_test", bool, None),
            corrections=_corrections(_get(data, "corrections", dict, {})),
            higher_is_better=_directions(_get(fields, "higher_is_better", dict, {})),
        )


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be read, and why."""

    file: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def read_summary(file: Path) -> Summary:
    """The summary in `file`.

    Raises:
        DataError: it cannot be read, or is no summary; gives the reason without the file's name.
    """
    try:
        return Summary.of(json.loads(read_regular(file, LARGEST)), file.parent)
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    except (ValueError, RecursionError, MemoryError) as error:  # no UTF-8, no JSON, nested too deeply
        raise DataError(f"no JSON ({str(error) or type(error).__name__})") from error


def find_summaries(folder: Path) -> tuple[list[Summary], list[Unreadable]]:
    """Every summary.json in `folder` at any depth, and the files and folders that could not be read."""
    found: list[Summary] = []
    unreadable: list[Unreadable] = []

    def refused(error: OSError) -> None:
        unreadable.append(Unreadable(Path(error.filename), error.strerror or str(error)))

    for parent, folders, files in os.walk(folder, onerror=refused):
        folders.sort()
        if FILE in files or FILE in folders:
            file = Path(parent, FILE)
            try:
                found.append(read_summary(file))
            except DataError as error:
                unreadable.append(Unreadable(file, str(error)))
    return found, unreadable


_REQUIRED: Any = object()


def _get(fields: Mapping[str, Any], key: str, kind: type[Value], default: Any = _REQUIRED) -> Any:
    value = fields.get(key, default)
    if value is _REQUIRED:
        raise DataError(f"{key} is missing")
    return default if value is None and default is not _REQUIRED else _typed(value, kind, key)


def _typed(value: Any, kind: type[Value], key: str) -> Value:
    """`value`, which must be of `kind`; a whole number is a float, but a bool is no number."""
    if type(value) is int and abs(value) >= 2**63:
        raise DataError(f"{key} is a number of more than 63 bits")
    if kind is float and type(value) is int:
        return float(value)  # type: ignore[return-value]
    if type(value) is not kind:
        raise DataError(f"{key} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _check_time(text: str) -> None:
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise DataError(f"started={text[:80]}: not a time") from error


def _texts(values: Sequence[object], key: str) -> tuple[str, ...]:
    return tuple(_typed(value, str, f"an entry of {key}") for value in values)


def _figures(values: Mapping[str, object]) -> dict[str, float]:
    if len(values) > MOST_FIGURES:
        raise DataError(f"{len(values):,} metrics; at most {MOST_FIGURES:,} are read")
    return {name: _typed(value, float, f"metrics[{name[:80]}]") for name, value in values.items()}


def _directions(values: Mapping[str, object]) -> dict[str, bool]:
    if len(values) > MOST_KEYS:
        raise DataError(f"{len(values):,} keys in higher_is_better; at most {MOST_KEYS:,} are read")
    return {name: _typed(value, bool, f"higher_is_better[{name[:80]}]") for name, value in values.items()}


def _corrections(values: Mapping[str, object]) -> dict[str, int]:
    """Number of images of all splits that data.corrections has changed, by what it did to them."""
    found = {}
    for what in ("relabelled", "excluded") if values else ():
        counts = _get(values, what, dict, {})
        found[what] = sum(_typed(count, int, f"corrections.{what}[{part[:80]}]") for part, count in counts.items())
    return found


def _configuration(values: Mapping[str, Json]) -> dict[str, Json]:
    if len(values) > MOST_KEYS:
        raise DataError(f"{len(values):,} keys in config; at most {MOST_KEYS:,} are read")
    for key, value in values.items():
        _check_depth(value, key, DEEPEST)
    return dict(values)


def _check_depth(value: Json, key: str, levels: int) -> None:
    if not levels:
        raise DataError(f"config[{key[:80]}] has more than {DEEPEST} levels")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_depth(each, key, levels - 1)
    elif value is not None:
        _typed(value, type(value), f"config[{key[:80]}]")
