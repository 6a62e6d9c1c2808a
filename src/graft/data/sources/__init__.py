"""From the target of a data set to its splits: one file per data set; what they share is here.

A source is a function, of this package or any other (`data._target_=my_package.my_set.load`), that fits the protocol
`SourceFunction`: it reads a data set and returns a `Source`. Its arguments are keys of the `data` group. It gets `root`
(data.root) and `seed` if it has parameters of these names; a source without `root` is embedded: nothing is looked for
or downloaded. The module that defines it may also define:

    DOWNLOAD: Download                  where the publisher keeps the set
    present(root) -> bool               whether the set lies at root; by default: whether that folder has content
    target(root) -> Path                where the archive's folder belongs; by default: root
    WANTED: str                         the layout to provide, for sets that cannot be downloaded
    CLASS_FOLDERS = True                one folder per class; `graft inspect` can read a set that cannot be divided
"""

import importlib
import importlib.util
import inspect
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args
from urllib.parse import urlparse

from graft.config.targets import TARGET, accepts, check_target
from graft.data.division import divide, with_fold
from graft.data.images import ImageSet
from graft.data.layout import read_as_found
from graft.data.sources.base import Download, Source, SourceFunction
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError, GraftError, NotAvailable, nearest
from graft.system import archives, downloads

__all__ = [
    "Download",
    "Source",
    "SourceFunction",
    "check_source",
    "checked_name",
    "ensure",
    "is_data_module",
    "known_sources",
    "load_splits",
    "locate",
    "source_arguments",
    "source_name",
    "source_target",
    "suggest_data", "undivided",
]  # fmt: skip

SUPPLIED = ("root", "seed", "batch_size", "num_workers")
"""Arguments that Graft supplies to a target if it has parameters of these names."""


def load_splits(
    source: str,
    *,
    root: Path | None,
    seed: int,
    shots: int | None = None,
    val_fraction: float = 0.1,
    fold: int | None = None,
    folds: int | None = None,
    download: bool = True,
    arguments: Mapping[str, Any] | None = None,
) -> Splits:
    """The data set of `source`, divided into training, validation and test.

    Args:
        source: the dotted path of a source function, or the name of one of this package ("flowers").
        root: folder of the set; None for embedded sets.
        seed: of the validation part, the shots, and whatever else the source draws.
        shots: keep this many training images of each class; None: all.
        val_fraction: part of the training images to validate on, where the set has no validation part of its
            own; 0: validate on the test part.
        fold, folds: validate on fold `fold` (from 0) of `folds` parts of all images that are not test images, and train
            on the others; where the set has no test part the fold serves as test too. None: no such division.
        download: fetch the set if it is not there.
        arguments: the source's own.

    Raises:
        ConfigError: unknown source or argument; names the nearest.
        NotAvailable: the set is neither here nor within reach.
        DataError: no images, one class only, a class too small for what is asked, or an unknown layout.
    """
    resolved = check_source(source, arguments or {})
    _check_numbers(shots, val_fraction)
    _check_fold(fold, folds)
    if not resolved.embedded:
        ensure(source, root, download)
    supplied = {name: value for name, value in (("root", root), ("seed", seed)) if accepts(resolved.target, name)}
    try:
        found = resolved.function(**supplied, **(arguments or {}))
    except OSError as error:
        raise DataError(f"data.root={root}: {error.filename} cannot be read ({error.strerror}).") from error
    if not isinstance(found, Source):
        raise ConfigError(
            f"data.{TARGET}={resolved.target}: returned a {type(found).__name__}, not a graft.data.sources.Source."
        )
    try:
        divided = found if folds is None else with_fold(found, fold or 0, folds, seed)
        splits = divide(divided, None if resolved.embedded else root, seed, shots, val_fraction)
        return replace(splits, source=found.fingerprint())
    except DataError as error:
        where = f"data={resolved.name}" if root is None else f"data.root={root}"
        raise DataError(f"{where}: {error}") from error


def undivided(source: str, root: Path | None) -> tuple[tuple[str, ...], dict[str, ImageSet]] | None:
    """(classes, part → images) of a set that `load_splits` refuses, as found at `root`; None without class folders."""
    if root is None or not root.is_dir() or not getattr(_resolve(source).module, "CLASS_FOLDERS", False):
        return None
    classes, parts = read_as_found(root)
    return (classes, parts) if classes else None


def known_sources() -> list[str]:
    """The names of the sources in this package."""
    files = (file.stem for file in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in files if name not in ("__init__", "base"))


def locate(source: str, root: Path | None, download: bool = True) -> GraftError | None:
    """Whether the set is here or can be fetched; the error to show if neither. Changes nothing.

    Answers at once when the set is here, else within `download.timeout` seconds.
    """
    resolved = _resolve(source)
    name, module = resolved.name, resolved.module
    if resolved.embedded:
        return None
    if root is None:
        return _no_root(name)
    if _present(module, root):
        return None
    fetch = getattr(module, "DOWNLOAD", None)
    if fetch is None:
        return _cannot_download(name, module, root)
    target = _target(module, root)
    if _archive(fetch, target).is_file():
        return None
    if not download:
        return NotAvailable(f"{name} data", fetch.url, _destination(fetch, target), "data.download=false")
    try:
        downloads.require_reachable(fetch.url, what=f"{name} data", manual_path=_destination(fetch, target))
    except NotAvailable as error:
        return error
    return None


def ensure(source: str, root: Path | None, download: bool = True) -> None:
    """Fetch and unpack the set of `source` unless it lies at `root`.

    An archive put next to the folder by hand is unpacked and kept; one fetched here is removed once unpacked. Two
    processes that start at the same time share one download.

    Raises:
        NotAvailable: neither here nor within reach; names the address and the places it may be put by hand.
        DataError: the set cannot be downloaded at all, or what arrived is damaged.
    """
    resolved = _resolve(source)
    name, module = resolved.name, resolved.module
    if root is None:
        raise _no_root(name)
    if _present(module, root):
        return
    fetch = getattr(module, "DOWNLOAD", None)
    if fetch is None:
        raise _cannot_download(name, module, root)
    target = _target(module, root)
    archive = _archive(fetch, target)
    if not archive.is_file() and not download:
        raise NotAvailable(f"{name} data", fetch.url, _destination(fetch, target), "data.download=false")
    _make_folder(target.parent)
    with downloads.locked(target):
        if not _present(module, root):
            _fetch(name, fetch, archive, target)


def _fetch(name: str, fetch: Download, archive: Path, target: Path) -> None:
    by_hand = archive.is_file()
    if by_hand:
        downloads.verify(archive, sha256=fetch.sha256, md5=fetch.md5)
    else:
        downloads.download(
            fetch.url,
            archive,
            what=f"{name} data",
            sha256=fetch.sha256,
            md5=fetch.md5,
            size=fetch.size,
            manual_path=_destination(fetch, target),
        )
    print(f"unpacking {archive.name} …", file=sys.stderr)
    for leftover in archives.leftovers(target):  # the lock is held
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        archives.extract(archive, target)
    except DataError:
        if not by_hand:
            archive.unlink(missing_ok=True)
        raise
    if not by_hand:
        archive.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Resolved:
    """A source function, and the module that says the rest about its set."""

    target: str
    function: SourceFunction
    module: ModuleType

    @property
    def name(self) -> str:
        return source_name(self.target)

    @property
    def embedded(self) -> bool:
        """Whether there is no folder to look for: the source takes none, or a LightningDataModule has its own."""
        return (
            isinstance(self.function, type)
            or not accepts(self.target, "root")
            or getattr(self.module, "EMBEDDED", False)
        )


def source_target(name: str) -> str:
    """The dotted path of the source function that `name` of this package stands for; a dotted path is itself.

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
    """How tables and messages call a target: "flowers" of "graft.data.sources.flowers.load", else its last part."""
    *module, last = target.split(".")
    return module[-1] if last == "load" and module else last


def suggest_data(name: str) -> str | None:
    """What to write instead of `data=NAME` where there is no such option: a folder, or a source of the user's own."""
    path = Path(name).expanduser()
    if path.is_dir():
        return f"data=folder data.root={name}"
    if "/" in name or os.sep in name:
        return f"data=folder data.root=FOLDER (there is no folder {name})"
    dotted = name.removesuffix(".py")
    if dotted.isidentifier() and Path(f"{dotted}.py").is_file():
        return f"data.{TARGET}={dotted}.load"
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return f"data.{TARGET}={name}"
    return None


def source_arguments(data: Any, schema: type) -> dict[str, Any]:
    """The arguments of the target in a `data` group: its keys that are no fields of `schema`, unless null."""
    known = {field.name for field in fields(schema)}
    keys = vars(data) if is_dataclass(data) else data
    own = {str(key): getattr(data, key) for key in keys if key not in known}
    return {key: value for key, value in own.items() if value is not None}


def checked_name(name: str | None, target: str) -> str:
    """data.name as tables and messages show it: by default the short name of the target.

    Raises:
        ConfigError: a name that stands for another data set; names the key that chooses one.
    """
    usual = source_name(target)
    if name is None or name == usual:
        return usual
    if "." in name:
        raise ConfigError(
            f"data.name={name}: only a label for tables. A source of your own is chosen by data.{TARGET}={name}.load."
        )
    if name in known_sources():
        raise ConfigError(f"data.name={name}: only a label for tables. The data set is chosen by data={name}.")
    return name


def is_data_module(target: str) -> bool:
    """Whether a target is a LightningDataModule class, found by its methods; imports it unless it is Graft's own.

    Raises:
        ConfigError: it cannot be imported.
    """
    if target.startswith(f"{__name__}."):
        return False
    function = _resolve(target).function
    return isinstance(function, type) and hasattr(function, "train_dataloader") and hasattr(function, "setup")


def check_source(source: str, arguments: Mapping[str, Any]) -> _Resolved:
    """Import a target whose arguments have been found to fit it.

    Raises:
        ConfigError: no such module or function, an argument that it does not take or lacks, or one of another type.
    """
    for key, value in dict(arguments.get("options") or {}).items():
        raise ConfigError(f"data.options.{key}={value}: the key is data.{key}={value}.")
    resolved = _resolve(source)
    check_target("data", {TARGET: resolved.target, **arguments}, supplied=SUPPLIED)
    parameters = inspect.signature(resolved.function).parameters
    for key, value in arguments.items():
        if key in parameters:
            _check_type(key, value, parameters[key].annotation)
    return resolved


def _resolve(source: str) -> _Resolved:
    """Import the function `source`, which somebody has made sure that the user named or trusts.

    The working directory comes last in the search: nothing in it replaces an installed module.
    """
    target = source_target(source)
    key = f"data.{TARGET}={target}"
    if os.getcwd() not in sys.path and _is_not_installed(target.partition(".")[0]):
        sys.path.append(os.getcwd())
    path, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(path)
    except (ImportError, ValueError) as error:  # also of no name at all, as ".set"
        raise ConfigError(f"{key}: {path} cannot be imported ({error}).") from error
    function = getattr(module, name, None)
    if _is_module(target) and (function is None or isinstance(function, ModuleType)):
        raise ConfigError(f"{key}: is a module; name a function in it, e.g. data.{TARGET}={target}.load.")
    if function is None:
        raise ConfigError(f"{key}: {path} has no function {name}.{nearest(name, dir(module))}")
    if not callable(function):
        raise ConfigError(f"{key}: is a {type(function).__name__}, not a function load(root, *, seed, …) -> Source.")
    defining = sys.modules.get(getattr(function, "__module__", path), module)
    return _Resolved(target, cast(SourceFunction, function), defining)


def _is_not_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except (ImportError, ValueError):
        return True


def _is_module(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except (ImportError, ValueError):
        return False


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a value of another type than the option's, where that is int, float, str or None."""
    allowed = tuple(kind for kind in (get_args(annotation) or (annotation,)) if isinstance(kind, type))
    if not allowed or not set(allowed) <= {int, float, str, bool, type(None)}:
        return
    fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
    if not fits or (isinstance(value, bool) and bool not in allowed):
        allowed_names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        raise ConfigError(f"data.{key}={value}: must be {allowed_names}.")


def _check_numbers(shots: int | None, val_fraction: float) -> None:
    if shots is not None and shots < 1:
        raise ConfigError(f"data.shots={shots}: at least one training image a class, or null for all.")
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"data.val_fraction={val_fraction}: from 0 to below 1.")


def _check_fold(fold: int | None, folds: int | None) -> None:
    if fold is None and folds is None:
        return
    if fold is None or folds is None:
        raise ConfigError(
            f"data.fold={_null(fold)} and data.folds={_null(folds)} disagree: give both or neither, e.g. "
            "data.fold=0 data.folds=5, swept with -m 'data.fold=range(0,5)'."
        )
    if folds < 2:
        raise ConfigError(f"data.folds={folds}: at least 2.")
    if not 0 <= fold < folds:
        raise ConfigError(f"data.fold={fold}: with data.folds={folds} there are folds 0 to {folds - 1}.")


def _null(value: int | None) -> str:
    return "null" if value is None else str(value)


def _present(module: ModuleType, root: Path) -> bool:
    check = getattr(module, "present", None)
    try:
        return check(root) if check else root.is_dir() and any(root.iterdir())
    except OSError as error:
        raise DataError(f"data.root={root}: cannot be read ({error.strerror}).") from error


def _target(module: ModuleType, root: Path) -> Path:
    choose = getattr(module, "target", None)
    return choose(root) if choose else root


def _archive(fetch: Download, target: Path) -> Path:
    return target.parent / Path(urlparse(fetch.url).path).name


def _destination(fetch: Download, target: Path) -> str:
    return f"{_archive(fetch, target).absolute()} (the archive as it is), or unpacked at {target.absolute()}"


def _no_root(name: str) -> ConfigError:
    return ConfigError(f"data.root is not set, and data={name} needs a folder.\nGive data.root=FOLDER.")


def _cannot_download(name: str, module: ModuleType, root: Path) -> DataError:
    state = "is empty" if root.is_dir() else "is not a folder" if root.exists() else "does not exist"
    wanted = getattr(module, "WANTED", "Put the images there, or give data.root=FOLDER.")
    return DataError(f"data.root={root}: {state}, and data={name} cannot be downloaded.\n{wanted}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made ({error.strerror}).\nSet paths.data or data.root to a folder you can write to."
        ) from error
