"""Which job folder of a sweep belongs to which configuration."""

import logging
from pathlib import Path

from graft.files import read_regular, write_atomically
from graft.locks import locked

log = logging.getLogger("graft")

INDEX = ".jobs"
"""The folder of a sweep that says which configuration has which job folder."""


def job_folder(sweep: Path, wanted: int, configuration: str) -> str:
    """The job folder below `sweep` that belongs to `configuration`, made if there is none yet.

    Args:
        sweep: the folder of the sweep.
        wanted: the number of the job in this command; the folder's name, unless another configuration has that.
        configuration: its `identity`.
    """
    (sweep / INDEX).mkdir(parents=True, exist_ok=True)
    lock = sweep / INDEX / "lock"
    with locked(lock, lambda holder: log.info("waiting for %s, which holds %s", holder, lock)):
        if folder := folder_of(sweep, configuration):
            return folder.name
        name = str(wanted)
        if (sweep / name).exists():
            name = str(1 + max(int(path.name) for path in sweep.iterdir() if path.name.isdigit()))
        (sweep / name).mkdir()
        write_atomically(sweep / INDEX / configuration, name.encode())
        return name


def folder_of(sweep: Path, configuration: str) -> Path | None:
    """The job folder that `configuration` has below `sweep`, if it has one."""
    entry = sweep / INDEX / configuration
    return sweep / read_regular(entry).decode() if entry.is_file() else None
