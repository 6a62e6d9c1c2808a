"""Index of a sweep: the job folder of each configuration."""

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
"""Folder in a sweep that maps each configuration to its job folder. It can be rebuilt from the summaries of the jobs
(`restore_index`)."""

NUMBER, IDENTITY = re.compile("[0-9]{1,18}"), re.compile("[0-9a-f]{16}")


def job_folder(sweep: Path, number: int, configuration: str) -> str:
    """Name of the folder in `sweep` that belongs to `configuration`; created if there is none yet.

    Args:
        sweep: the folder of the sweep.
        number: of the job in this command; names the folder, unless another configuration has a folder of that name.
        configuration: its `identity`.
    """
    if not (sweep / INDEX).is_dir():
        restore_index(sweep)
    with _index_locked(sweep):
        if folder := existing_job_folder(sweep, configuration):
            return folder.name
        name = str(number)
        if (sweep / name).exists():
            name = str(1 + max(int(path.name) for path in _numbered(sweep)))
        (sweep / name).mkdir()
        _write(sweep, configuration, name)
        return name


def _index_locked(sweep: Path) -> AbstractContextManager[None]:
    lock = sweep / INDEX / "lock"
    return locked(lock, lambda holder: log.info("waiting for %s, which holds the lock %s", holder, lock))


def existing_job_folder(sweep: Path, configuration: str) -> Path | None:
    """The job folder of `configuration` in `sweep`; None if there is none."""
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
    """Create the index, and add the job folders that are missing from it according to their summaries.

    Raises:
        DataError: its folder cannot be created.
    """
    try:
        (sweep / INDEX).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{sweep / INDEX}: cannot be created ({error.strerror}).\n"
            "Remove the file in its path, or set another sweep_name."
        ) from error
    with _index_locked(sweep):
        entries = [entry for entry in (sweep / INDEX).iterdir() if IDENTITY.fullmatch(entry.name)]
        indexed = {entry.name: folder for entry in entries if (folder := existing_job_folder(sweep, entry.name))}
        missing = set(_numbered(sweep)) - set(indexed.values())
        runs = [run for folder in missing if (run := _summary(folder))]
        restored = 0
        for run in sorted(runs, key=lambda run: (run.unfinished, int(run.folder.name))):
            if IDENTITY.fullmatch(run.identity) and run.identity not in indexed:
                indexed[run.identity] = run.folder
                _write(sweep, run.identity, run.folder.name)
                restored += 1
        if restored:
            log.warning("note  %s: %d missing jobs were restored from their summaries", sweep / INDEX, restored)


def _summary(folder: Path) -> Summary | None:
    try:
        return read_summary(folder / FILE)
    except DataError:
        return None  # none yet, or one that the table at the end of the sweep reports as unreadable


def _write(sweep: Path, configuration: str, name: str) -> None:
    write_atomically(sweep / INDEX / configuration, name.encode())


def _numbered(sweep: Path) -> Iterator[Path]:
    """Paths whose names are those of job folders."""
    return (path for path in sweep.iterdir() if NUMBER.fullmatch(path.name))
