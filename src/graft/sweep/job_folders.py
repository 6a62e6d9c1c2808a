"""Which job folder of a sweep belongs to which configuration."""

import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from graft.errors import DataError
from graft.report.summary import FILE, Summary, read_summary
from graft.system.files import read_regular, write_atomically
from graft.system.locks import locked

log = logging.getLogger("graft")

INDEX = ".jobs"
"""The folder of a sweep that says which configuration has which job folder. What it says can be read from the jobs'
own summaries too, so nothing is lost with it (`restore_index`)."""

NUMBER, IDENTITY = re.compile("[0-9]{1,18}"), re.compile("[0-9a-f]{16}")


def job_folder(sweep: Path, wanted: int, configuration: str) -> str:
    """The job folder below `sweep` that belongs to `configuration`, made if there is none yet.

    Args:
        sweep: the folder of the sweep.
        wanted: the number of the job in this command; the folder's name, unless another configuration has that.
        configuration: its `identity`.
    """
    if not (sweep / INDEX).is_dir():
        restore_index(sweep)
    with _index_locked(sweep):
        if folder := folder_of(sweep, configuration):
            return folder.name
        name = str(wanted)
        if (sweep / name).exists():
            name = str(1 + max(int(path.name) for path in _numbered(sweep)))
        (sweep / name).mkdir()
        _write(sweep, configuration, name)
        return name


def _index_locked(sweep: Path) -> AbstractContextManager[None]:
    lock = sweep / INDEX / "lock"
    return locked(lock, lambda holder: log.info("waiting for %s, which holds %s", holder, lock))


def folder_of(sweep: Path, configuration: str) -> Path | None:
    """The job folder that `configuration` has below `sweep`, if it has one."""
    entry = sweep / INDEX / configuration
    try:
        name = read_regular(entry, 64).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("note  %s: cannot be read (%s)", entry, error)
        return None
    if not NUMBER.fullmatch(name):
        log.warning("note  %s: %r is not the name of a job folder; ignored", entry, name)
        return None
    return sweep / name


def restore_index(sweep: Path) -> None:
    """Make the index, and add to it the job folders that it lacks, by what their summaries say.

    Raises:
        DataError: something else has its place.
    """
    try:
        (sweep / INDEX).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{sweep / INDEX}: cannot be made ({error.strerror}).\n"
            "Remove what is there, or give a sweep_name of its own to this sweep."
        ) from error
    with _index_locked(sweep):
        entries = [entry for entry in (sweep / INDEX).iterdir() if IDENTITY.fullmatch(entry.name)]
        indexed = {entry.name: folder for entry in entries if (folder := folder_of(sweep, entry.name))}
        left = set(_numbered(sweep)) - set(indexed.values())
        runs = [run for folder in left if (run := _summary(folder))]
        restored = 0
        for run in sorted(runs, key=lambda run: (run.unfinished, int(run.folder.name))):
            if IDENTITY.fullmatch(run.identity) and run.identity not in indexed:
                indexed[run.identity] = run.folder
                _write(sweep, run.identity, run.folder.name)
                restored += 1
        if restored:
            log.warning("note  %s: %d jobs were missing, found again by their summaries", sweep / INDEX, restored)


def _summary(folder: Path) -> Summary | None:
    try:
        return read_summary(folder / FILE)
    except DataError:
        return None  # none yet, or one that the table at the end of the sweep names


def _write(sweep: Path, configuration: str, name: str) -> None:
    write_atomically(sweep / INDEX / configuration, name.encode())


def _numbered(sweep: Path) -> Iterator[Path]:
    """What may be a job folder, by its name."""
    return (path for path in sweep.iterdir() if NUMBER.fullmatch(path.name))
