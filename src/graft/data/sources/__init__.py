"""From a data set's name to its splits: one file a set, everything they share is here.

A source is a module, one of this package or anybody's (`data.name=my_package.my_set`), with

    def load(root: Path, *, seed: int, **options) -> Source

and, where they make sense, `DOWNLOAD: Download`, `present(root) -> bool` (default: a folder that is not
empty), `target(root) -> Path` (where the archive's folder belongs; default: `root`), `WANTED: str` (the
layout to provide, for sets that cannot be downloaded) and `EMBEDDED = True` (needs no root). Its options are
the keywords of `load`.
"""

import importlib
import inspect
import shutil
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from urllib.parse import urlparse

from graft import downloads
from graft.data.images import ImageSet
from graft.data.sources.base import Download, Source
from graft.data.splits import Splits, few_shot, stratified_fraction
from graft.errors import ConfigError, DataError, GraftError, NotAvailable

__all__ = ["Download", "Source", "ensure", "known_sources", "load_splits", "locate"]

VALIDATE_ON_TEST = "Add images, or set data.val_fraction=0 to validate on the test split."


def load_splits(
    name: str,
    *,
    root: Path | None,
    seed: int,
    shots: int | None = None,
    val_fraction: float = 0.1,
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
    if not _embedded(module):
        ensure(name, root, download)
    source = module.load(root, seed=seed, **chosen)
    try:
        return _divide(source, None if _embedded(module) else root, seed, shots, val_fraction)
    except DataError as error:
        where = f"data={name}" if root is None else f"data.root={root}"
        raise DataError(f"{where}: {error}") from error


def known_sources() -> list[str]:
    """The names of the sources in this package."""
    files = (file.stem for file in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in files if name not in ("__init__", "base"))


def locate(name: str, root: Path | None, download: bool = True, *, timeout: float = 5.0) -> GraftError | None:
    """Whether the set is here or can be fetched; the error to show if neither. Changes nothing.

    Answers at once when the set is here, else within `timeout` seconds.
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
        downloads.require_reachable(fetch.url, what=f"{name} data", place=_place(fetch, target), timeout=timeout)
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
            place=_place(fetch, target),
        )
    print(f"unpacking {archive.name} …", file=sys.stderr)
    for left_over in target.parent.glob(f".{target.name}.*.partial"):  # of a run that was killed; we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        downloads.extract(archive, target)
    except DataError:
        if not by_hand:
            archive.unlink(missing_ok=True)
        raise
    if not by_hand:
        archive.unlink(missing_ok=True)


def _divide(source: Source, root: Path | None, seed: int, shots: int | None, val_fraction: float) -> Splits:
    """Carve what is missing, keep the shots, and say what serves as what."""
    classes, notes = source.classes, list(source.notes)
    train, val, test = source.train, source.val, source.test
    _refuse_nothing(classes, train)
    if source.test_fraction is not None and shots is not None:
        kept, rest = few_shot(train.labels, shots, seed, classes=classes)
        _leave_some(train, kept, shots, classes)
        train, test, shots = train.select(kept), train.select(rest), None
        val = test
        notes.append(f"the {len(test)} images that do not train serve as validation and as test")
    elif source.test_fraction is not None:
        kept, drawn = stratified_fraction(
            train.labels,
            source.test_fraction,
            source.split_seed,
            key="data.options.test_fraction",
            way_out="Add images.",
            classes=classes,
        )
        train, test = train.select(kept), train.select(drawn)
    if val is None and (val_fraction > 0 or test is None):
        train, val = _carve_validation(train, val_fraction, seed, classes)
    if val is None:
        val = test
        notes.append(f"the {len(val or ())} test images serve as validation too (data.val_fraction=0)")
    if test is None:
        test = val
        notes.append(f"this set has no test part: its {len(val or ())} validation images serve as test too")
    assert val is not None
    assert test is not None
    if shots is not None:
        kept, _ = few_shot(train.labels, shots, seed, classes=classes)
        train = train.select(kept)
    for part, images in (("validation", val), ("test", test)):
        if not len(images):
            raise DataError(f"no {part} images.")
    absent = [name for name, count in zip(classes, test.counts(len(classes)), strict=True) if not count]
    if absent:
        notes.append(f"no test images of {', '.join(absent)}")
    return Splits(classes=classes, train=train, val=val, test=test, notes=tuple(notes), root=root)


def _carve_validation(
    train: ImageSet, val_fraction: float, seed: int, classes: Sequence[str]
) -> tuple[ImageSet, ImageSet]:
    if val_fraction == 0:
        raise DataError(
            "data.val_fraction=0 leaves nothing to validate or test on: this set has neither part.\n"
            "Set data.val_fraction=0.1, or provide a val or test folder."
        )
    rest, drawn = stratified_fraction(
        train.labels, val_fraction, seed, key="data.val_fraction", way_out=VALIDATE_ON_TEST, classes=classes
    )
    return train.select(rest), train.select(drawn)


def _refuse_nothing(classes: Sequence[str], train: ImageSet) -> None:
    if not len(train):
        raise DataError("no training images.")
    if len(classes) < 2:
        raise DataError(
            f'one class only ("{classes[0]}"): there is nothing to tell apart.\n'
            "Add a folder of images of another class."
        )
    absent = [name for name, count in zip(classes, train.counts(len(classes)), strict=True) if not count]
    if absent:
        raise DataError(f'class "{absent[0]}" has no training images.\nAdd some, or remove the class everywhere.')


def _leave_some(pool: ImageSet, kept: Sequence[int], shots: int, classes: Sequence[str]) -> None:
    rest = set(range(len(pool))) - set(kept)
    for label, count in enumerate(pool.counts(len(classes))):
        if count and not any(pool.labels[i] == label for i in rest):
            raise DataError(
                f'class "{classes[label]}" has {count} images, and data.shots={shots} leaves none to test.\n'
                f"Set data.shots={count - 1} or fewer."
            )


def _source(name: str) -> ModuleType:
    if "." in name:
        return _own_source(name)
    if name not in known_sources():
        nearest = get_close_matches(name, known_sources(), n=1, cutoff=0.5)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise ConfigError(
            f"data.name={name}: no such data set.{hint} There are {', '.join(known_sources())}; "
            "for class folders of your own use data=folder data.root=FOLDER."
        )
    return importlib.import_module(f"{__name__}.{name}")


def _own_source(name: str) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
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
            nearest = get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
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
