"""Watching the worker processes of a loader: hung and killed workers become errors that name the reason."""

import contextlib
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from graft.data.parcels import Parcel
from graft.errors import DataError, GraftError
from graft.system.locks import process_state

log = logging.getLogger("graft")

TICK = 1.0
"""Seconds between two checks of a wait."""
WARN_AT = 0.1
"""Fraction of data.timeout after which the log names the reason for a wait."""
SHARED_MEMORY = Path("/dev/shm")


def batches_of(
    start: Callable[[], Iterator[Any]], count: int, timeout: float | None, running: Iterator[Any] | None = None
) -> Iterator[Any]:
    """The unpacked batches of a DataLoader's iterator, with a limit on every wait for its worker processes.

    Args:
        start: returns the iterator.
        count: number of its worker processes.
        timeout: seconds that a batch may take; None: no limit.
        running: the iterator of the last epoch, whose processes `start` waits for, if they continue.

    Raises:
        DataError: the processes cannot be started, one was killed, or no batch came in time; names the process and what
            it was doing.
        GraftError: raised in a worker process.
    """
    watch = Watch(_workers_of(running), timeout)
    try:
        batches = _awaited(lambda: _started(start, count), running, watch)
        if batches is not running:
            watch.close()
            watch = Watch(_workers_of(batches), timeout)
        while True:
            try:
                batch = _awaited(lambda: _unpacked(next(batches)), batches, watch)
            except StopIteration:
                return
            if isinstance(batch, GraftError):
                # at once: the error's reference cycle would keep them alive for ten seconds
                stop(batches, watch.workers)
                raise batch
            yield batch
    finally:
        watch.close()


def _workers_of(batches: Iterator[Any] | None) -> Sequence[BaseProcess]:
    return getattr(batches, "_workers", ())


def _unpacked(batch: Any) -> Any:
    return batch.unpack() if isinstance(batch, Parcel) else batch


def _awaited(action: Callable[[], Any], batches: Iterator[Any] | None, watch: "Watch") -> Any:
    """The result of `action`, which waits for the processes of `batches`; raises as `batches_of`."""
    try:
        with watch.waiting():
            return action()
    except StopIteration:
        raise
    except BaseException as error:
        reason = watch.failure or _failure_behind(error, watch.workers)
        stop(batches, watch.workers)
        continue_workers()
        if reason is None:
            raise
        raise DataError(reason) from error


def _started(start: Callable[[], Iterator[Any]], count: int) -> Iterator[Any]:
    try:
        return start()
    except OSError as error:
        raise DataError(
            f"data.num_workers={count}: the worker processes cannot be started ({error}). "
            f"{shared_memory()}\nSet data.num_workers=0, which needs no processes."
        ) from error


def stop(batches: Iterator[Any] | None, workers: Sequence[BaseProcess]) -> None:
    """Kill the worker processes of a DataLoader's iterator, including stopped ones."""
    for _ in range(2):  # torch's SIGCHLD handler may interrupt the first attempt
        with contextlib.suppress(RuntimeError):
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()
    with contextlib.suppress(RuntimeError):
        getattr(batches, "_shutdown_workers", lambda: None)()


class Watch:
    """A thread that limits the waits for worker processes.

    After the timeout it finds the reason and kills the processes, which ends any wait of the main thread for them.
    DataLoader's own `timeout` does not apply to some waits, such as for a socket of a stopped worker.

    Attributes:
        failure: why no batch came; None so far.
    """

    def __init__(self, workers: Sequence[BaseProcess], timeout: float | None) -> None:
        self.workers, self.timeout = workers, timeout
        self.failure: str | None = None
        self._state = 0  # odd during a wait; incremented at its start and end
        self._closed = threading.Event()
        if workers:
            threading.Thread(target=self._run, name="waiting for batches", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context of a wait, to which the timeout applies."""
        self._state += 1
        try:
            yield
        finally:
            self._state += 1

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()

    def _run(self) -> None:
        timeout = float("inf") if self.timeout is None else self.timeout
        tick = min(TICK, timeout / 10)
        waited, state, warned = 0.0, 0, False
        # Time is counted in ticks, so that time while the whole run is stopped (Ctrl-Z) does not count.
        while not self._closed.wait(tick):
            if self._state % 2 == 0 or self._state != state:
                waited, state = 0.0, self._state
                continue
            waited += tick
            if waited >= timeout:
                self.failure = (
                    f"data.timeout={timeout:g}: the worker processes sent no batch for {timeout:g} seconds: "
                    f"{activity(self.workers)}.\n"
                    "If they are only slow, raise data.timeout; data.num_workers=0 loads without them."
                )
                for worker in self.workers:
                    worker.kill()
                return
            if waited >= (WARN_AT * timeout if timeout < float("inf") else 60.0) and not warned:
                warned = True
                log.warning("waiting for a batch: %s", activity(self.workers))


def activity(workers: Sequence[BaseProcess]) -> str:
    """What worker processes are doing instead of sending a batch, as far as the operating system shows."""
    reports = []
    for worker in workers:
        pid = worker.pid or 0
        state, name = process_state(pid), f"worker process {pid}"
        if state in ("T", "t"):
            reports.append(f"{name} is stopped (SIGSTOP; kill -CONT {pid} continues it)")
        elif not worker.is_alive():
            reports.append(f"{name} has ended with exit code {worker.exitcode}")
        elif files := _open_images(pid):
            waits = ", waiting for the disk or the network" if state == "D" else ""
            reports.append(f"{name} is reading {', '.join(files)}{waits}")
    if reports:
        return "; ".join(reports)
    return f"worker processes {', '.join(str(worker.pid) for worker in workers)} are running; the reason is unknown"


def _open_images(pid: int) -> list[str]:
    from graft.data.reading import EXTENSIONS

    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry.path))
    return sorted({ascii(path)[1:-1] for path in found if path.lower().endswith(EXTENSIONS)})


_KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\. |exited)")


def failure_of(error: BaseException) -> str | None:
    """Message for torch's error about a worker process that ended; None for any other error."""
    found = _KILLED.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    numbers = {signal.strsignal(number): number for number in signal.valid_signals()}
    return _ended(found[1], numbers.get(found[2] or ""))


def _failure_behind(error: BaseException, workers: Sequence[BaseProcess]) -> str | None:
    """Message for an error caused by the end of a worker process or the connection to it; None for any other error."""
    message = failure_of(error)
    if message is None and not isinstance(error, OSError | EOFError):
        return None
    try:
        ending = connection.wait([worker.sentinel for worker in workers], 1.0)
        for worker in workers:
            worker.join(1.0 if worker.sentinel in ending else 0)  # its files are closed slightly before it ends
        dead = [worker for worker in workers if worker.exitcode]
    except RuntimeError as later:  # torch's SIGCHLD handler
        return failure_of(later)
    if dead:
        return _ended(str(dead[0].pid), -(dead[0].exitcode or 0))
    return (
        message
        or f"a batch cannot be received from a worker process ({error}).\ndata.num_workers=0 loads without them."
    )


def _ended(pids: str, number: int | None) -> str:
    """Message for worker processes that ended, by signal `number` if it is one."""
    name = signal.Signals(number).name if number in set(signal.Signals) else None
    why = {
        "SIGKILL": ", as the system does when memory runs out",
        "SIGBUS": f", as when memory runs out. {shared_memory()}",
        "SIGSEGV": ": a library crashed in it",
    }.get(name or "", "")
    ended = f"was killed by {name}" if name else "ended unexpectedly"
    return (
        f"worker process {pids}, which loads images, {ended}{why}.\n"
        "Fewer data.num_workers, or a smaller data.batch_size, need less memory; data.num_workers=0 loads without them."
    )


@contextmanager
def explaining_worker_failures() -> Iterator[None]:
    """Context that turns torch's error about a killed worker, which can be raised anywhere, into a DataError."""
    try:
        yield
    except RuntimeError as error:
        reason = failure_of(error)
        if reason is None:
            raise
        raise DataError(reason) from error


def shared_memory() -> str:
    """A sentence about the free space of /dev/shm; "" if it does not exist."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    return (
        f"{SHARED_MEMORY} has {usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MB free "
        "(docker run --shm-size=1g gives a container more)."
    )


def continue_workers() -> None:
    """Continue the stopped workers of all loaders: torch waits 5 seconds for each, multiprocessing without a limit."""
    import multiprocessing

    for child in multiprocessing.active_children():
        if child.daemon and child.pid is not None and process_state(child.pid) == "T":
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGCONT)


util.Finalize(None, continue_workers, exitpriority=10)
