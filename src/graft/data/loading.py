"""Locating, downloading, reading and splitting the data set of a source."""

import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from graft.config.targets import TARGET, accepts
from graft.data.division import divide, require_whole_groups, with_fold
from graft.data.image_format import RGB, ImageFormat
from graft.data.images import ImageSet
from graft.data.layout import UNUSED, read_as_found, unused_files
from graft.data.sources import ResolvedSource, check_source, resolve_source, suggest_data
from graft.data.sources.base import Download, Source
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError, GraftError, NotAvailable, did_you_mean, listed
from graft.system import archives, downloads


def load_splits(
    source: str,
    *,
    root: Path | None,
    seed: int,
    shots: int | None = None,
    val_fraction: float = 0.1,
    fold: int | None = None,
    folds: int | None = None,
    group_pattern: str | None = None,
    download: bool = True,
    arguments: Mapping[str, Any] | None = None,
    image_format: ImageFormat = RGB,
    prepare: Callable[[Source], Source] = lambda source: source,
) -> Splits:
    """The training, validation and test images of a data set.

    Args:
        source: dotted path of a source function, or the name of one of Graft's own ("flowers").
        root: folder of the data set; None for embedded sets.
        seed: of the draws of validation images and shots, and of the source's own.
        shots: number of training images per class; None: all.
        val_fraction: fraction of the training images to validate on, in [0, 1), for a data set without validation
            images of its own; 0: validate on the test images.
        fold, folds: validate on fold `fold` (from 0) of `folds` folds of all images that are not test images, and train
            on the others; without test images of its own, the set is also tested on the fold. None: no folds.
        group_pattern: regular expression whose group in the name of an image is the image's group, e.g.
            "^(cam[0-9]+)_"; no group is in two splits. None: the groups of the source, if it has any.
        download: whether to download a data set that is not in `root`.
        arguments: of the source.
        image_format: what the images are converted to when they are read.
        prepare: called with the published data set before it is split, e.g. to group its images.

    Raises:
        ConfigError: an unknown source or argument (names the nearest), or a value out of range.
        NotAvailable: the data set is not in `root` and cannot be downloaded.
        DataError: no images, a single class, a class with too few images, or an unknown layout.
    """
    arguments = arguments or {}
    _check_numbers(shots, val_fraction)
    _check_fold(fold, folds)
    published, root = load_published(
        source,
        root=root,
        seed=seed,
        group_pattern=group_pattern,
        download=download,
        arguments=arguments,
        image_format=image_format,
    )
    resolved = resolve_source(source)
    try:
        published = prepare(published)
        folded = published if folds is None else with_fold(published, fold or 0, folds, seed)
        splits = divide(folded, None if resolved.embedded else root, seed, shots, val_fraction)
        if published.group_of is not None:
            splits = replace(splits, notes=(*splits.notes, require_whole_groups(splits, published.group_of)))
        return _with_unused(replace(splits, source=published.fingerprint()), published, shots)
    except DataError as error:
        raise DataError(f"{_key(resolved, root)}: {error}") from error


def load_published(
    source: str,
    *,
    root: Path | None,
    seed: int,
    group_pattern: str | None = None,
    download: bool = True,
    arguments: Mapping[str, Any] | None = None,
    image_format: ImageFormat = RGB,
) -> tuple[Source, Path | None]:
    """(a data set as it is published, its folder), before any draw; arguments and errors as in `load_splits`."""
    arguments = arguments or {}
    resolved = check_source(source, arguments)
    pattern = checked_group_pattern(group_pattern)
    root = _folder(resolved, root, arguments)
    if not resolved.embedded:
        ensure(source, root, download)
    published = _published(resolved, root, seed, arguments, image_format)
    if pattern is None:
        return published, root
    try:
        return _grouped(published, pattern), root
    except DataError as error:
        raise DataError(f"{_key(resolved, root)}: {error}") from error


def _key(resolved: ResolvedSource, root: Path | None) -> str:
    return f"data={resolved.name}" if root is None else f"data.root={root}"


def _published(
    resolved: ResolvedSource, root: Path | None, seed: int, arguments: Mapping[str, Any], image_format: ImageFormat
) -> Source:
    """What the source function returns, to be read in a format.

    Raises:
        ConfigError: no Source.
        DataError: what the function reads cannot be read.
    """
    known = {"root": root, "seed": seed, "more_endings": image_format.extensions}
    supplied = {name: value for name, value in known.items() if accepts(resolved.target, name)}
    try:
        published = resolved.function(**supplied, **arguments)
    except OSError as error:
        raise DataError(f"data.root={root}: {error.filename} cannot be read ({error.strerror}).") from error
    if not isinstance(published, Source):
        raise ConfigError(
            f"data.{TARGET}={resolved.target}: returned a {type(published).__name__}, not a graft.data.sources.Source."
        )
    return published if image_format.is_rgb else published.in_format(image_format)


def _folder(resolved: ResolvedSource, root: Path | None, arguments: Mapping[str, Any]) -> Path | None:
    """The folder of a data set: `root`, unless the source's module finds it by the source's arguments."""
    find = getattr(resolved.module, "find", None)
    found: Path | None = find(root, arguments) if find else root
    return found


def checked_group_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """data.group_pattern compiled; None for null.

    Raises:
        ConfigError: it is no regular expression with one group.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.group_pattern={pattern}: is no regular expression ({error}).") from error
    if compiled.groups != 1:
        raise ConfigError(
            f"data.group_pattern={pattern}: has {compiled.groups} groups in parentheses; one must enclose the part of "
            "the path that names the group, as in '^(cam[0-9]+)_'."
        )
    return compiled


def _grouped(source: Source, pattern: re.Pattern[str]) -> Source:
    """The source with groups by the names of its images.

    Raises:
        ConfigError: the source has groups of its own.
        DataError: the pattern does not match the name of an image.
    """
    key = f"data.group_pattern={pattern.pattern}"
    if source.group_of is not None:
        raise ConfigError(f"{key}: this data set has groups of its own.\nChoose one: data.group_pattern=null.")

    def group_of(name: str) -> str:
        found = pattern.search(name)
        return found[1] or "" if found else ""

    unmatched = [name for part in source.parts() for name in part.names if not group_of(name)]
    if unmatched:
        names = listed(unmatched, LISTED, counted=False)
        raise DataError(
            f"{key}: has no match in the names of {len(unmatched):,} images: {names}.\n"
            "It is searched for in the path relative to data.root."
        )
    return replace(source, group_of=group_of)


LISTED = 3
"""Number of unused files that a note names for each reason."""


def _with_unused(splits: Splits, published: Source, shots: int | None) -> Splits:
    """`splits` with a list of, and notes about, the files and images that are not used."""
    notes = list(splits.notes)
    parts = published.parts()
    remaining = sum(map(len, parts)) - len(splits.part("all"))
    if remaining and shots is not None:
        notes.append(f"{remaining:,} images are not used (data.shots={shots})")
    unused = unused_of(published, splits.root)
    for reason, count in Counter(reason for _, reason in unused).most_common():
        names = [name for name, why in unused if why == reason]
        one, several = UNUSED[reason]
        files = f"1 {one} is" if count == 1 else f"{count:,} {several} are"
        notes.append(f"{files} not used ({reason}): {listed(names, LISTED, counted=False)}")
    return replace(splits, notes=tuple(notes), unused=tuple(unused))


def unused_of(published: Source, root: Path | None) -> list[tuple[str, str]]:
    """(name, reason) of the rows, images and files in `root` that a data set does not use."""
    paths = [path for part in published.parts() for path in part.files]
    if root is None or not paths:
        return list(published.unused)
    found = unused_files(root, paths, searched=published.searched, described=published.files)
    return [*published.unused, *found]


def undivided(
    source: str, root: Path | None, seed: int, arguments: Mapping[str, Any], image_format: ImageFormat = RGB
) -> tuple[tuple[str, ...], dict[str, ImageSet], tuple[str, ...], tuple[tuple[str, str], ...]] | None:
    """(classes, split → images, notes, unused) of a data set that `load_splits` refuses; None if it cannot be read."""
    resolved = resolve_source(source)
    root = _folder(resolved, root, arguments)
    if root is not None and root.is_dir() and getattr(resolved.module, "CLASS_FOLDERS", False):
        classes, parts = read_as_found(root)
        parts = {name: replace(part, image_format=image_format) for name, part in parts.items()}
        paths = [path for part in parts.values() for path in part.files]
        return (classes, parts, (), tuple(unused_files(root, paths))) if classes else None
    try:
        published = _published(resolved, root, seed, arguments, image_format)
    except DataError:
        return None
    parts = {name: part for name, part in published.named_parts().items() if len(part)}
    return (published.classes, parts, published.notes, published.unused) if parts else None


def locate(
    source: str, root: Path | None, download: bool = True, arguments: Mapping[str, Any] | None = None
) -> GraftError | None:
    """The error to report if a data set is neither in `root` nor can be downloaded, else None; changes nothing.

    Returns at once if the set is in `root`, else within `download.timeout` seconds.
    """
    resolved = resolve_source(source)
    if resolved.embedded:
        return None
    try:
        root = _folder(resolved, root, arguments or {})
    except DataError as error:
        return error
    if root is None:
        return _no_root(resolved.name)
    if _is_present(resolved, root):
        return None
    archive = _archive_of(resolved)
    if archive is None:
        return _not_downloadable(resolved, root)
    target = _target(resolved, root)
    if _archive_file(archive, target).is_file():
        return None
    what, manual_path = f"{resolved.name} data", _manual_path(archive, target)
    if not download:
        return NotAvailable(what, archive.url, manual_path, "data.download=false")
    try:
        downloads.require_reachable(archive.url, what=what, manual_path=manual_path)
    except NotAvailable as error:
        return error
    return None


def ensure(source: str, root: Path | None, download: bool = True) -> None:
    """Download and unpack the data set of `source` unless it is in `root`.

    An archive that the user saved next to the folder is unpacked and kept; a downloaded one is removed after unpacking.
    Processes that start at the same time share one download.

    Raises:
        NotAvailable: neither in `root` nor downloadable; names the URL, and the paths for a manual download.
        DataError: the data set has no download, or the archive is damaged.
    """
    resolved = resolve_source(source)
    if root is None:
        raise _no_root(resolved.name)
    if _is_present(resolved, root):
        return
    archive = _archive_of(resolved)
    if archive is None:
        raise _not_downloadable(resolved, root)
    target = _target(resolved, root)
    file, what, manual_path = _archive_file(archive, target), f"{resolved.name} data", _manual_path(archive, target)
    if not file.is_file() and not download:
        raise NotAvailable(what, archive.url, manual_path, "data.download=false")
    _make_folder(target.parent)
    with downloads.locked(target):
        if not _is_present(resolved, root):
            _fetch(what, archive, file, target, manual_path)


def _fetch(what: str, archive: Download, file: Path, target: Path, manual_path: str) -> None:
    """Unpack the archive `file` to the folder `target`, downloaded first unless the user saved it there."""
    saved_by_user = file.is_file()
    if saved_by_user:
        downloads.verify(file, sha256=archive.sha256, md5=archive.md5)
    else:
        downloads.download(
            archive.url,
            file,
            what=what,
            sha256=archive.sha256,
            md5=archive.md5,
            size=archive.size,
            manual_path=manual_path,
        )
    print(f"unpacking {file.name} …", file=sys.stderr)
    for partial in archives.leftovers(target):  # of killed processes: this one has the lock
        shutil.rmtree(partial, ignore_errors=True)
    try:
        archives.extract(file, target)
    except DataError:
        if not saved_by_user:
            file.unlink(missing_ok=True)
        raise
    if not saved_by_user:
        file.unlink(missing_ok=True)


def _is_present(resolved: ResolvedSource, root: Path) -> bool:
    check = getattr(resolved.module, "present", None)
    try:
        return check(root) if check else root.is_dir() and any(root.iterdir())
    except OSError as error:
        raise DataError(f"data.root={root}: cannot be read ({error.strerror}).") from error


def _archive_of(resolved: ResolvedSource) -> Download | None:
    return getattr(resolved.module, "DOWNLOAD", None)


def _target(resolved: ResolvedSource, root: Path) -> Path:
    """The folder that the archive's folder becomes."""
    choose = getattr(resolved.module, "target", None)
    return choose(root) if choose else root


def _archive_file(archive: Download, target: Path) -> Path:
    return target.parent / Path(urlparse(archive.url).path).name


def _manual_path(archive: Download, target: Path) -> str:
    return f"{_archive_file(archive, target).absolute()} (the archive as it is), or unpacked at {target.absolute()}"


def _no_root(name: str) -> ConfigError:
    return ConfigError(f"data.root is not set, and data={name} needs a folder.\nGive data.root=FOLDER.")


def _not_downloadable(resolved: ResolvedSource, root: Path) -> DataError:
    state = "is empty" if root.is_dir() else "is not a folder" if root.exists() else "does not exist"
    layout = getattr(resolved.module, "LAYOUT_HELP", "Put the images there, or give data.root=FOLDER.")
    hint = did_you_mean([suggest_data(str(root)) or ""]) if root.is_file() else ""
    return DataError(f"data.root={root}: {state}, and data={resolved.name} cannot be downloaded.{hint}\n{layout}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be created ({error.strerror}).\n"
            "Set paths.data or data.root to a folder that you can write to."
        ) from error


def _check_numbers(shots: int | None, val_fraction: float) -> None:
    if shots is not None and shots < 1:
        raise ConfigError(f"data.shots={shots}: must be at least 1 training image per class, or null for all.")
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"data.val_fraction={val_fraction}: must be at least 0 and below 1.")


def _check_fold(fold: int | None, folds: int | None) -> None:
    if fold is None and folds is None:
        return
    if fold is None or folds is None:
        raise ConfigError(
            f"data.fold={_null(fold)} and data.folds={_null(folds)} disagree: give both or neither, e.g. "
            "data.fold=0 data.folds=5, swept with -m 'data.fold=range(0,5)'."
        )
    if folds < 2:
        raise ConfigError(f"data.folds={folds}: must be at least 2.")
    if not 0 <= fold < folds:
        raise ConfigError(f"data.fold={fold}: with data.folds={folds} there are folds 0 to {folds - 1}.")


def _null(value: int | None) -> str:
    return "null" if value is None else str(value)
