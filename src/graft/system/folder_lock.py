"""Creates folders exclusively, and locks a folder while a process writes to it."""

import contextlib
import errno
import itertools
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, SoftFileLock, Timeout

from graft.errors import ConfigError
from graft.system.files import explaining_write_errors, require_writable, write_atomically
from graft.system.slurm import slurm_tasks

if TYPE_CHECKING:
    from omegaconf import DictConfig

LOCK, HOLDER, MARKER = ".lock", ".lock.json", ".lock.held"
"""Files in a folder that is in use: the lock, its holder, and the marker on file systems without locks."""

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
"""Error codes of file systems that cannot lock files."""


def new_folder(path: Path) -> Path:
    """Create a folder exclusively: `path`, or where that exists `path`_1, `path`_2, ….

    Raises:
        DataError: it cannot be created.
    """
    with explaining_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count():
            folder = path if number == 0 else path.with_name(f"{path.name}_{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise AssertionError("unreachable")


def claimed_folder(
    folder: Path, generated_name: bool, results: Mapping[str, str], *, key: str = "hydra.run.dir"
) -> Path:
    """The folder for the results of a command: a new one of a generated name, else `folder`, which holds none yet.

    Args:
        folder: the value of `key`.
        generated_name: whether Graft has chosen its name.
        results: file of a result -> what it is a result of, e.g. {"summary.json": "a run"}.
        key: the configuration key that sets the folder.

    Raises:
        ConfigError: the folder cannot be written to, or has a result.
    """
    if generated_name:
        return new_folder(folder)
    require_writable(folder, key)
    for name, what in results.items():
        if (folder / name).exists():
            raise ConfigError(f"{key}={folder}: holds {name} of {what}.\nGive another folder.")
    return folder


GENERATED = ("${now:", "${run_name:")
"""Resolvers in the value of a key whose folder name Graft generates."""


def is_generated(node: object, key: str) -> bool:
    """Whether the value of `key` is a name that Graft generates, such as the start time, not one that the user set."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else {}
    return any(word in str(values.get(key)) for word in GENERATED)


def output_folder(config: "DictConfig") -> Path:
    """`config.folder` as the user set it, or a new folder of the generated name."""
    folder = Path(config.folder).expanduser()
    return new_folder(folder) if is_generated(config, "folder") else folder


class FolderLock:
    """Exclusive right of a process to write to a folder.

    The lock ends with the process, even after a crash. On a file system without locks, a marker file names the holder's
    host and process; it is ignored if that process ran on this host and has ended, or in the same Slurm step.

    Args:
        folder: created if it does not exist.
        key: the configuration key that names it, for the error message.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._lock: FileLock | SoftFileLock | None = None

    def acquire(self) -> None:
        """Lock the folder.

        Raises:
            ConfigError: another process has locked it; names its host, process id and start.
        """
        with explaining_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquired()
            write_atomically(self.folder / HOLDER, json.dumps(_this_process()).encode())

    def _acquired(self) -> FileLock | SoftFileLock:
        if not _has_locks(self.folder / LOCK):
            return self._marked()
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise self._in_use() from None
        return lock

    def _marked(self) -> SoftFileLock:
        """Create the marker file that replaces a lock on a file system without locks."""
        marker = self.folder / MARKER
        if _same_step(read_holder(self.folder)):
            marker.unlink(missing_ok=True)  # Slurm queues a job again only when its processes are gone
        lock = SoftFileLock(marker)
        for timeout in (0, 1):  # the first attempt may only remove the marker of a process that has ended
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=timeout)
                return lock
        raise self._in_use(f"If that process is gone, remove {marker}.")

    def _in_use(self, way_out: str = "") -> ConfigError:
        holder = read_holder(self.folder)
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "another process"
        return ConfigError(
            f"{self.key}={self.folder}: in use by {who}.\nWait for it, stop it, or give another folder."
            + (f" {way_out}" if way_out else "")
        )

    def release(self) -> None:
        """Unlock the folder; does nothing if it is not locked."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):  # the folder or the disk is gone
                (self.folder / HOLDER).unlink(missing_ok=True)
                (self.folder / LOCK).unlink(missing_ok=True)  # while it is locked: a later process creates a new one
            lock.release()

    def __enter__(self) -> "FolderLock":
        if self._lock is None:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _has_locks(file: Path) -> bool:
    """Whether files on the file system of `file` can be locked; what filelock does where they cannot depends on its
    version."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        with file.open("ab") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:  # locked by another process
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        file.unlink(missing_ok=True)
        return False
    return True


def read_holder(folder: Path) -> dict[str, Any]:
    """Host, process id and start of the process that locks `folder`, or was killed while it did; empty if unknown."""
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return {"pid": int(holder["pid"]), "host": _plain(holder["host"]), "since": _plain(holder["since"])} | {
            "step": holder.get("step")
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _plain(text: object) -> str:
    return "".join(character for character in str(text)[:100] if character.isprintable())


def _this_process() -> dict[str, Any]:
    tasks = slurm_tasks()
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
        "step": tasks.step if tasks else None,
    }


def _same_step(holder: dict[str, Any]) -> bool:
    tasks = slurm_tasks()
    return tasks is not None and bool(holder) and holder["step"] == tasks.step
