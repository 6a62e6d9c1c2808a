"""Locks between processes that report which process they wait for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def locked(lock_file: Path, on_wait: Callable[[str], object]) -> Iterator[None]:
    """Hold `lock_file` in the block.

    Args:
        lock_file: created if it does not exist.
        on_wait: called with a description of the holder, e.g. "process 123 (train.py)", before waiting for it.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait(holder_of(lock_file))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def holder_of(lock_file: Path) -> str:
    """Describe the process that holds `lock_file`, as far as the system knows it."""
    try:
        inode = str(lock_file.stat().st_ino)
        entries = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return "another process"
    for entry in entries:  # 1: FLOCK ADVISORY WRITE 123 08:01:456 0 EOF
        if len(entry) == 8 and entry[1] == "FLOCK" and entry[5].rpartition(":")[2] == inode and int(entry[4]) > 0:
            return describe_process(int(entry[4]))
    return "another process, on another machine or in another container"


def describe_process(pid: int) -> str:
    """Describe a process by its id and command, and say if it is stopped."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    command = ascii(" ".join(filter(None, words)))[1:-1]
    stopped = f", which is stopped (kill -CONT {pid} continues it)" if process_state(pid) in ("T", "t") else ""
    return f"process {pid}" + (f" ({command[:80]})" if command else "") + stopped


def process_state(pid: int) -> str:
    """State of a process as the kernel's letter, e.g. "T" for stopped; "" without /proc."""
    return next(iter(process_stat(pid)), "")


def process_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from "state" on (proc(5)); empty without /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
