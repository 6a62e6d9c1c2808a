"""Data sources: their names and the checks of their arguments. One file per data set; imports no NumPy.

A source is a function, of this package or any other (`data._target_=my_package.my_set.load`), that reads a data set and
returns a `Source`; see `SourceFunction`. Its arguments are keys of the `data` group. It gets `root` (data.root) and
`seed` if it has parameters of these names; a source without `root` is embedded, so nothing is located or downloaded.
The module that defines it may also define:

    DOWNLOAD: Download                  the published archive
    present(root) -> bool               whether the data set is in the folder root; default: it is not empty
    target(root) -> Path                where to unpack the archive's folder; default: root
    LAYOUT_HELP: str                    the expected layout, for data sets that cannot be downloaded
    CLASS_FOLDERS = True                one folder per class: `graft inspect` can read a set that cannot be split
    find(root, arguments) -> Path       the folder of the data set, by data.root (or None) and the source's arguments;
                                        raises DataError if there is none; default: data.root

`graft.data.loading` finds, downloads and splits the data set of a source.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args

from graft.config.targets import TARGET, accepts, check_target, find_package
from graft.data.sources.base import Download, Source, SourceFunction
from graft.data.tables import TABLES
from graft.errors import ConfigError, nearest

__all__ = [
    "Download",
    "ResolvedSource",
    "Source",
    "SourceFunction",
    "check_source",
    "checked_name",
    "is_data_module",
    "known_sources",
    "resolve_source",
    "source_arguments",
    "source_name",
    "source_target",
    "suggest_data",
]

SUPPLIED = ("root", "seed", "batch_size", "num_workers", "more_endings")
"""Arguments that Graft supplies to a target if it has parameters of these names."""


NAMED = ("hf",)
"""Sources of which data.name chooses the data set."""


@dataclass(frozen=True)
class ResolvedSource:
    """An imported source function.

    Attributes:
        target: its dotted path.
        function: the function, or a LightningDataModule class.
        module: the module that defines it, with its optional attributes (see above).
    """

    target: str
    function: SourceFunction
    module: ModuleType

    @property
    def name(self) -> str:
        """Short name for tables and messages."""
        return source_name(self.target)

    @property
    def embedded(self) -> bool:
        """Whether the data set has no folder: the source takes no `root`, or is a LightningDataModule."""
        return isinstance(self.function, type) or not accepts(self.target, "root")


# Names


def known_sources() -> list[str]:
    """Names of the sources in this package, sorted."""
    files = (file.stem for file in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in files if name not in ("__init__", "base"))


def source_target(name: str) -> str:
    """The dotted path of the source function that `name` refers to; a dotted path is returned unchanged.

    Raises:
        ConfigError: no such source; names the nearest.
    """
    if "." in name:
        return name
    if name not in known_sources():
        hint = nearest(name, known_sources(), most=1, cutoff=0.5)
        raise ConfigError(
            f"data={name}: there is no such data set.{hint} Choose {', '.join(known_sources())}; "
            "for class folders of your own use data=folder data.root=FOLDER."
        )
    return f"{__name__}.{name}.load"


def source_name(target: str) -> str:
    """Short name of a target: "flowers" of "graft.data.sources.flowers.load", otherwise its last part."""
    *module, last = target.split(".")
    return module[-1] if last == "load" and module else last


def checked_name(name: str | None, target: str) -> str:
    """The label of a data set in tables and messages: data.name, by default the short name of the target.

    Of the sources in `NAMED` it chooses the data set, too.

    Raises:
        ConfigError: `name` refers to another data set; names the key that chooses one.
    """
    default = source_name(target)
    if name is None or name == default:
        return default
    if default in NAMED and target == source_target(default):
        return name
    if "." in name:
        raise ConfigError(
            f"data.name={name}: only a label for tables. A source of your own is chosen by data.{TARGET}={name}.load."
        )
    if name in known_sources():
        raise ConfigError(f"data.name={name}: only a label for tables. The data set is chosen by data={name}.")
    return name


def suggest_data(name: str) -> str | None:
    """The overrides to use instead of `data=NAME` if NAME is a folder or a custom source; None if it is neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        return f"data=folder data.root={name}"
    if path.suffix.lower() in TABLES:
        return f"data=table data.table={name}" + ("" if path.is_file() else f" (there is no file {name})")
    if "/" in name or os.sep in name:
        return f"data=folder data.root=FOLDER (there is no folder {name})"
    dotted = name.removesuffix(".py")
    if dotted.isidentifier() and Path(f"{dotted}.py").is_file():
        return f"data.{TARGET}={dotted}.load"
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return f"data.{TARGET}={name}"
    return None


# Arguments


def source_arguments(data: Any, schema: type) -> dict[str, Any]:
    """Arguments of the target in a `data` group: the keys that are not fields of `schema` and not null."""
    known = {field.name for field in fields(schema)}
    keys = vars(data) if is_dataclass(data) else data
    arguments = {str(key): getattr(data, key) for key in keys if key not in known}
    return {key: value for key, value in arguments.items() if value is not None}


def check_source(source: str, arguments: Mapping[str, Any]) -> ResolvedSource:
    """Import a source after checking its arguments; those of Graft's own sources are checked before the import.

    Raises:
        ConfigError: no such module or function; an unknown or missing argument, or one of a wrong type.
    """
    for key, value in dict(arguments.get("options") or {}).items():
        raise ConfigError(f"data.options.{key}={value}: the key is data.{key}={value}.")
    target = source_target(source)
    if not target.startswith(f"{__name__}."):
        resolve_source(target)  # its errors are more precise for a path that cannot be imported
    check_target("data", {TARGET: target, **arguments}, supplied=SUPPLIED)
    resolved = resolve_source(target)
    parameters = inspect.signature(resolved.function).parameters
    for key, value in arguments.items():
        if key in parameters:
            _check_type(key, value, parameters[key].annotation)
    return resolved


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a value of a wrong type for an argument annotated with int, float, str, bool or None."""
    allowed = get_args(annotation) or (annotation,)
    if not set(allowed) <= {int, float, str, bool, type(None)}:
        return
    fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
    if not fits or (isinstance(value, bool) and bool not in allowed):
        allowed_names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        raise ConfigError(f"data.{key}={value}: must be {allowed_names}.")


# Importing


def is_data_module(target: str) -> bool:
    """Whether a target is a LightningDataModule class, recognised by its methods; imports it unless it is Graft's own.

    Raises:
        ConfigError: it cannot be imported.
    """
    if target.startswith(f"{__name__}."):
        return False
    function = resolve_source(target).function
    return isinstance(function, type) and hasattr(function, "train_dataloader") and hasattr(function, "setup")


def resolve_source(source: str) -> ResolvedSource:
    """Import the source function `source`; the caller must have checked that the user named or trusts it.

    The working directory is searched last, so that nothing in it replaces an installed module.

    Raises:
        ConfigError: no such module or function, or not a function; names the nearest.
    """
    target = source_target(source)
    key = f"data.{TARGET}={target}"
    find_package(target.partition(".")[0])
    path, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(path)
    except (ImportError, ValueError) as error:  # ValueError: an empty name, as in ".set"
        raise ConfigError(f"{key}: {path} cannot be imported ({error}).") from error
    function = getattr(module, name, None)
    if _is_module(target) and (function is None or isinstance(function, ModuleType)):
        raise ConfigError(f"{key}: is a module; name a function in it, e.g. data.{TARGET}={target}.load.")
    if function is None:
        raise ConfigError(f"{key}: {path} has no function {name}.{nearest(name, dir(module))}")
    if not callable(function):
        raise ConfigError(f"{key}: is a {type(function).__name__}, not a function load(root, *, seed, …) -> Source.")
    defining = sys.modules.get(getattr(function, "__module__", path), module)
    return ResolvedSource(target, cast(SourceFunction, function), defining)


def _is_module(name: str) -> bool:
    """Whether a module or package of this (dotted) name can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
