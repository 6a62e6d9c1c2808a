"""From a data set's name to its splits: one file a set, everything they share is here.

A source is a module, one of this package or anybody's (`data.name=my_package.my_set`), with

    def load(root: Path, *, seed: int, **options) -> Source

and, where they make sense, `DOWNLOAD: Download`, `present(root) -> bool` (default: a folder that is not
empty), `target(root) -> Path` (where the archive's folder belongs; default: `root`), `WANTED: str` (the
layout to provide, for sets that cannot be downloaded), `EMBEDDED = True` (needs no root) and `CLASS_FOLDERS = True`
(a folder a class, which can be looked at even where it cannot be divided). Its options are the keywords of `load`.
"""

import importlib.util
import inspect
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from urllib.parse import urlparse

from graft.data.division import divide, with_fold
from graft.data.images import ImageSet
from graft.data.layout import read_as_found
from graft.data.sources.base import Download, Source
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError, GraftError, NotAvailable, nearest
from graft.system import archives, downloads

__all__ = ["Download", "Source", "ensure", "known_sources", "load_splits", "locate", "undivided"]


def load_splits(
    name: str,
    *,
    root: Path | None,
    seed: int,
    shots: int | None = None,
    val_fraction: float = 0.1,
    fold: int | None = None,
    folds: int | None = None,
    download: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Splits:
    """The data set `name` below `root`, divided into training, validation and test.

    Args:
        name: a source of this package ("flowers") or the dotted name of a module of the user's own.
        root: folder of the set; None for embedded sets.
        seed: of the validation part, the shots, and whatever else the source draws.
        shots: keep this many training images of each class; None: all.
        val_fraction: part of the training images to validate on, where the set has no validation part of its
            own; 0: validate on the test part.
        fold, folds: validate on fold `fold` (from 0) of `folds` parts of all images that are not test images, and train
            on the others; where the set has no test part the fold serves as test too. None: no such division.
        download: fetch the set when it is not there.
        options: what only this source knows.

    Raises:
        ConfigError: unknown source or option; names the nearest.
        NotAvailable: the set is neither here nor within reach.
        DataError: no images, one class only, a class too small for what is asked, or an unknown layout.
    """
    module = _source(name)
    chosen = _checked_options(name, module, options or {})
    _check_numbers(shots, val_fraction)
    _check_fold(fold, folds)
    if not _embedded(module):
        ensure(name, root, download)
    try:
        source = module.load(root, seed=seed, **chosen)
    except OSError as error:
        raise DataError(f"data.root={root}: {error.filename} cannot be read ({error.strerror}).") from error
    try:
        divided = source if folds is None else with_fold(source, fold or 0, folds, seed)
        splits = divide(divided, None if _embedded(module) else root, seed, shots, val_fraction)
        return replace(splits, source=source.fingerprint())
    except DataError as error:
        where = f"data={name}" if root is None else f"data.root={root}"
        raise DataError(f"{where}: {error}") from error


def undivided(name: str, root: Path | None) -> tuple[tuple[str, ...], dict[str, ImageSet]] | None:
    """(classes, part → images) of a set that `load_splits` refuses, as it lies at `root`; None where there is none."""
    if root is None or not root.is_dir() or not getattr(_source(name), "CLASS_FOLDERS", False):
        return None
    classes, parts = read_as_found(root)
    return (classes, parts) if classes else None


def known_sources() -> list[str]:
    """The names of the sources in this package."""
    files = (file.stem for file in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in files if name not in ("__init__", "base"))


def locate(name: str, root: Path | None, download: bool = True) -> GraftError | None:
    """Whether the set is here or can be fetched; the error to show if neither. Changes nothing.

    Answers at once when the set is here, else within `download.timeout` seconds.
    """
    module = _source(name)
    if _embedded(module):
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
        return NotAvailable(f"{name} data", fetch.url, _place(fetch, target), "data.download=false")
    try:
        downloads.require_reachable(fetch.url, what=f"{name} data", place=_place(fetch, target))
    except NotAvailable as error:
        return error
    return None


def ensure(name: str, root: Path | None, download: bool = True) -> None:
    """See to it that the set `name` lies at `root`: fetch and unpack it unless it is there.

    An archive put beside the folder by hand is unpacked and kept; one fetched here is removed when it is
    unpacked. Two processes that start at once share one download.

    Raises:
        NotAvailable: neither here nor within reach; names the address and the places it may be put by hand.
        DataError: the set cannot be downloaded at all, or what arrived is damaged.
    """
    module = _source(name)
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
        raise NotAvailable(f"{name} data", fetch.url, _place(fetch, target), "data.download=false")
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
            place=_place(fetch, target),
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


def _source(name: str) -> ModuleType:
    if "." in name:
        return _own_source(name)
    if name not in known_sources():
        hint = nearest(name, known_sources(), most=1, cutoff=0.5)
        raise ConfigError(
            f"data.name={name}: no such data set.{hint} There are {', '.join(known_sources())}; "
            "for class folders of your own use data=folder data.root=FOLDER."
        )
    return importlib.import_module(f"{__name__}.{name}")


def _own_source(name: str) -> ModuleType:
    """A module of the user's own, of which somebody has made sure that the user named it or trusts its package.

    The working directory comes last: nothing in it takes the place of an installed module.
    """
    try:
        if os.getcwd() not in sys.path and importlib.util.find_spec(name.partition(".")[0]) is None:
            sys.path.append(os.getcwd())
        module = importlib.import_module(name)
    except (ImportError, ValueError) as error:  # also of no name at all, as ".set"
        raise ConfigError(f"data.name={name}: this module cannot be imported ({error}).") from error
    if not callable(getattr(module, "load", None)):
        raise ConfigError(f"data.name={name}: this module has no function load(root, *, seed, …) -> Source.")
    return module


def _checked_options(name: str, module: ModuleType, options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(module.load).parameters
    known = {key: parameter for key, parameter in parameters.items() if key not in ("root", "seed")}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        return dict(options)
    for key, value in options.items():
        if key not in known:
            hint = nearest(key, known, most=1, cutoff=0.4)
            there = f"There are {', '.join(known)}." if known else "It has none."
            raise ConfigError(f"data.options.{key}: not an option of data={name}.{hint} {there}")
        _check_type(key, value, known[key].annotation)
    return dict(options)


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuse a value of another type than the option's, where that is int, float, str or None."""
    allowed = tuple(kind for kind in (get_args(annotation) or (annotation,)) if isinstance(kind, type))
    if not allowed or not set(allowed) <= {int, float, str, bool, type(None)}:
        return
    fits = isinstance(value, allowed) or (float in allowed and isinstance(value, int))
    if not fits or (isinstance(value, bool) and bool not in allowed):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        raise ConfigError(f"data.options.{key}={value}: wants {wanted}.")


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


def _embedded(module: ModuleType) -> bool:
    return getattr(module, "EMBEDDED", False)


def _present(module: ModuleType, root: Path) -> bool:
    check = getattr(module, "present", None)
    try:
        return check(root) if check else root.is_dir() and any(root.iterdir())
    except OSError as error:
        raise DataError(f"data.root={root}: cannot be read ({error.strerror}).") from error


def _target(module: ModuleType, root: Path) -> Path:
    place = getattr(module, "target", None)
    return place(root) if place else root


def _archive(fetch: Download, target: Path) -> Path:
    return target.parent / Path(urlparse(fetch.url).path).name


def _place(fetch: Download, target: Path) -> str:
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
