"""Exclusive claims and shared leases as plain files, for folders that several processes, users and machines share.

They need only exclusive creation and renaming of files; flock, fcntl locks and SQLite are not reliable over NFS. In
return, a claim passes to another process if its holder has not renewed it for too long, although that holder may still
run. What a claim protects must therefore stay correct with two holders; for example a folder that each of them writes
under its own temporary name and renames when it is complete.
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

RENEWAL_SECONDS = 10.0
"""Interval in seconds at which a holder renews the modification time of its files."""

EXPIRY_SECONDS = 120.0
"""A claim that was not renewed for this long expires. Over NFS a change can take a minute to become visible."""

HUNG_SECONDS = 600.0
"""A holder that reports no progress for this long stops renewing its claim."""

ABANDONED_SECONDS = 900.0
"""A lease of another machine that was not renewed for this long counts as abandoned."""


START_TIME = 19
"""Index of "starttime" (proc(5)) in the fields that `process_stat` returns."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a claim or a lease.

    Attributes:
        host: name of its machine, for messages.
        machine: identifies the boot of the machine and the container in which `pid` is valid.
        pid: its process id.
        started: its start time in clock ticks, because process ids are reused; 0 if unknown.
        since: when it acquired the claim or lease, for messages.
    """

    host: str
    machine: str
    pid: int
    started: int
    since: str

    @classmethod
    def current(cls) -> "Holder":
        """This process, as a holder from now on."""
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        return cls(socket.gethostname(), _machine(), os.getpid(), _start_of(os.getpid()), since)

    @classmethod
    def read(cls, content: bytes) -> "Holder | None":
        """Parse the content of a claim or lease; None if it is incomplete or invalid."""
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
        """Whether the process runs, or ran, on this machine and in this container."""
        return self.machine == _machine()

    @property
    def has_ended(self) -> bool:
        """Whether the process has certainly ended; always false for another machine."""
        return self.is_local and not _is_running(self.pid, self.started)


class Lease:
    """A file that names its holder; a thread renews it until it is released or the process ends.

    Args:
        path: created exclusively. A name common to all processes makes it a claim, a name unique to the holder a shared
            lease.
        on_created: called with the path after the file is created, e.g. to set its permissions.

    Raises:
        FileExistsError: another process holds `path`.
    """

    def __init__(self, path: Path, on_created: Callable[[Path], object] = lambda path: None) -> None:
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
        on_created(path)
        threading.Thread(target=self._renew_regularly, name=f"lease {path.name}", daemon=True).start()

    def progress(self) -> None:
        """Report progress, i.e. that the holder does not hang (see HUNG_SECONDS)."""
        self._progress = time.monotonic()

    def renew(self) -> float:
        """Set the file's modification time to now, by the clock of the file system, and return it."""
        os.utime(self.path)
        return self.path.stat().st_mtime

    def release(self) -> None:
        """Remove the file, unless another process has acquired it or this process is a fork of its holder."""
        self._released.set()
        with contextlib.suppress(OSError):
            if self.pid == os.getpid() and self.path.read_bytes() == self.content:
                self.path.unlink()

    def _renew_regularly(self) -> None:
        while not self._released.wait(RENEWAL_SECONDS):
            with contextlib.suppress(OSError):  # retried after the next interval
                if time.monotonic() - self._progress < HUNG_SECONDS and self.path.read_bytes() == self.content:
                    self.renew()


class Watch:
    """Monitors another process's claim by the clock of this process, because clocks of machines differ.

    Args:
        path: the claim.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content: tuple[bytes, int] | None = None
        self._since = time.monotonic()

    def read(self) -> Holder | None:
        """Read the claim and return its holder; None if there is no claim or its file is incomplete."""
        try:
            content = self.path.read_bytes(), self.path.stat().st_mtime_ns
        except FileNotFoundError:
            content = None
        if content != self._content:
            self._content, self._since = content, time.monotonic()
        return None if content is None else Holder.read(content[0])

    def why_abandoned(self) -> str | None:
        """Why the claim, as last read, is no longer valid; None while it is."""
        if self._content is None:
            return None
        holder = Holder.read(self._content[0])
        if holder is not None and holder.has_ended:
            return "has ended"
        silent = time.monotonic() - self._since
        return f"was not renewed for {silent:.0f} s (stopped, hung or unreachable)" if silent > EXPIRY_SECONDS else None

    def clear(self) -> None:
        """Remove the claim as last read; if several processes do this at once, only one removes it.

        Raises:
            OSError: the claim belongs to another user and cannot be removed.
        """
        if self._content is None:
            return
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.stale")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            self.path.rename(aside)
            if aside.read_bytes() != self._content[0] and not self.path.exists():
                aside.rename(self.path)  # a new claim, made since it was read
            else:
                aside.unlink()


def is_live(path: Path, now: float) -> bool:
    """Whether the holder of a shared lease may still be using the protected folder.

    Args:
        path: the lease.
        now: time by the clock of the file system, from `Lease.renew`.
    """
    try:
        holder, renewed = Holder.read(path.read_bytes()), path.stat().st_mtime
    except FileNotFoundError:
        return False
    if holder is not None and holder.is_local:  # a stopped process renews nothing, but may continue
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
    """Whether the process `pid` that started at `started` still runs; True if unknown."""
    if state := process_state(pid):
        return state not in "ZX" and (started == 0 or _start_of(pid) == started)
    if os.name == "nt":  # os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _start_of(pid: int) -> int:
    """Start time of a process in clock ticks since the boot; 0 if unknown."""
    try:
        return int(process_stat(pid)[START_TIME])
    except (ValueError, IndexError):
        return 0
