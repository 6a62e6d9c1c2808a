"""Exclusive claims and shared leases as plain files, for folders that several processes, users and machines share.

They need neither flock, nor fcntl locks, nor SQLite, none of which is reliable over NFS; only exclusive creation and
renaming of files. In return, a claim is taken over from a holder that has not renewed it for too long, although that
holder may still run. Whatever a claim protects must therefore stay correct with two holders; for example a folder that
each of them writes under a temporary name of its own and renames when it is complete.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cache
from pathlib import Path

from graft.system.locks import process_stat, process_state

BEAT_SECONDS = 10.0
"""A holder renews the time of change of its files this often."""

SILENT_SECONDS = 120.0
"""A claim that was not renewed for this long is taken over. Over NFS a change can take a minute to be seen."""

HUNG_SECONDS = 600.0
"""A holder that makes no progress for this long renews its claim no more."""

ABANDONED_SECONDS = 900.0
"""A lease from another machine that was not renewed for this long counts as left by a process that has ended."""


START_TIME = 19
"""Of the fields that `process_stat` gives: "starttime" of proc(5)."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a claim or a lease.

    Attributes:
        host: name of its machine, for people.
        machine: identifies the boot of the machine and the container in which `pid` is valid.
        pid: its number there.
        started: when it started, in the kernel's ticks, because numbers are used again; 0 where that is unknown.
        since: when it began to hold, for people.
    """

    host: str
    machine: str
    pid: int
    started: int
    since: str

    @classmethod
    def current(cls) -> "Holder":
        """This process, from now on."""
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(socket.gethostname(), _machine(), os.getpid(), _start_of(os.getpid()), since)

    @classmethod
    def read(cls, content: bytes) -> "Holder | None":
        """The holder that a file names; None if it is incomplete or not such a file."""
        try:
            values = json.loads(content)
            types = {field.name: field.type for field in fields(cls)}
            if {name: type(values[name]) for name in types} != types:
                return None
            return cls(**{name: values[name] for name in types})
        except (ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        host, since = (text if text.isprintable() else repr(text) for text in (self.host, self.since))
        return f"process {self.pid} on {host}, since {since}"

    @property
    def is_local(self) -> bool:
        """Whether it runs, or ran, on this machine and in this container."""
        return self.machine == _machine()

    @property
    def has_ended(self) -> bool:
        """Whether it is certain that the process is gone; of one on another machine that is never certain."""
        return self.is_local and not _is_running(self.pid, self.started)


class Lease:
    """A file that names its holder, renewed by a thread until it is released or the process ends.

    Args:
        path: created exclusively: with a name that all use it is a claim, with one of the holder's own a shared lease.
        made: called with the path once the file is there, e.g. to set its permissions.

    Raises:
        FileExistsError: somebody holds `path`.
    """

    def __init__(self, path: Path, made: Callable[[Path], object] = lambda path: None) -> None:
        self.path = path
        self.content = json.dumps(asdict(Holder.current()) | {"token": secrets.token_hex(8)}).encode()
        self.pid = os.getpid()
        self._progress = time.monotonic()
        self._released = threading.Event()
        with path.open("xb") as file:
            try:
                file.write(self.content)
                file.flush()
            except BaseException:  # a full disk
                path.unlink(missing_ok=True)
                raise
        made(path)
        threading.Thread(target=self._renew_regularly, name=f"lease {path.name}", daemon=True).start()

    def progress(self) -> None:
        """Report that the holder is not hung (see HUNG_SECONDS)."""
        self._progress = time.monotonic()

    def renew(self) -> float:
        """Set the file's time of change to now, by the clock of the file system, and return it."""
        os.utime(self.path)
        return self.path.stat().st_mtime

    def release(self) -> None:
        """Remove the file, unless another process has taken it over or this is a fork of its holder."""
        self._released.set()
        with contextlib.suppress(OSError):
            if self.pid == os.getpid() and self.path.read_bytes() == self.content:
                self.path.unlink()

    def _renew_regularly(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # tried again at the next beat
                if time.monotonic() - self._progress < HUNG_SECONDS and self.path.read_bytes() == self.content:
                    self.renew()


class Watch:
    """Monitor of another process's claim, by the clock of this process because clocks of machines differ.

    Args:
        path: the claim.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[bytes, int] | None = None
        self._since = time.monotonic()

    def look(self) -> Holder | None:
        """The holder of the claim; None if there is none or its file is incomplete."""
        try:
            seen = self.path.read_bytes(), self.path.stat().st_mtime_ns
        except FileNotFoundError:
            seen = None
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return None if seen is None else Holder.read(seen[0])

    def why_abandoned(self) -> str | None:
        """Why the claim as last seen need not be respected; None while it must be."""
        if self._seen is None:
            return None
        holder = Holder.read(self._seen[0])
        if holder is not None and holder.has_ended:
            return "has ended"
        silent = time.monotonic() - self._since
        return (
            f"has been silent for {silent:.0f} s (stopped, hung or out of reach)" if silent > SILENT_SECONDS else None
        )

    def clear(self) -> None:
        """Remove the claim as last seen; of several processes that do this at once, one removes it.

        Raises:
            OSError: it belongs to another user and may not be removed.
        """
        if self._seen is None:
            return
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.stale")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            self.path.rename(aside)
            if aside.read_bytes() != self._seen[0] and not self.path.exists():
                aside.rename(self.path)  # a new claim, made since it was looked at
            else:
                aside.unlink()


def is_live(path: Path, now: float) -> bool:
    """Whether the holder of a shared lease may still be using what it protects.

    Args:
        path: the lease.
        now: the time by the clock of the file system, from `Lease.renew`.
    """
    try:
        holder, renewed = Holder.read(path.read_bytes()), path.stat().st_mtime
    except FileNotFoundError:
        return False
    if holder is not None and holder.is_local:  # a process that was stopped renews nothing, but may go on
        return not holder.has_ended
    return now - renewed < ABANDONED_SECONDS


@cache
def _machine() -> str:
    """Identifier of the machine, its boot, and the container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_running(pid: int, started: int) -> bool:
    """Whether the process that started at `started` still runs; True where the system does not tell."""
    if state := process_state(pid):
        return state not in "ZX" and (started == 0 or _start_of(pid) == started)
    if os.name == "nt":  # where os.kill ends the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _start_of(pid: int) -> int:
    """When a process started, in clock ticks since the boot; 0 where the system does not tell."""
    try:
        return int(process_stat(pid)[START_TIME])
    except (ValueError, IndexError):
        return 0
