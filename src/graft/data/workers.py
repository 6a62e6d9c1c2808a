"""Batches from worker processes: how they are handed over, and what ends the wait when none comes."""

import contextlib
import io
import logging
import mmap
import os
import pickle
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import connection, reduction, util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from graft.errors import DataError, GraftError
from graft.system.locks import process_state

log = logging.getLogger("graft")

ALIGNED = 64
TICK = 1.0
"""Seconds between two looks at a wait."""
WARN_AT = 0.1
"""Part of data.timeout after which the log says what is waited for."""
SHARED_MEMORY = Path("/dev/shm")


# Handing over


@dataclass
class Parcel:
    """A batch on its way from a worker process: its tensors in one block of memory that has no file name.

    torch would put each tensor into a file in /dev/shm (64 MB in a container, unless configured otherwise), in a
    background thread of the worker: where that is full, or where no socket can be made in TMPDIR, the batch is lost and
    the loader waits for ever. This block is limited by nothing but memory; where even that cannot be had, it travels
    through the pipe.

    Attributes:
        content: the batch, pickled, with numbers in place of its tensors.
        tensors: (type, shape, strides, offset in bytes) of each.
        size: bytes of the block.
        block: the block as a file descriptor, or its bytes.
        fallback: why it is the bytes; empty otherwise.
    """

    content: bytes
    tensors: list[tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]]
    size: int
    block: Any
    fallback: str = ""

    def unpack(self, *, pinned: bool = False) -> Any:
        """The batch; `pinned` copies it into memory that a GPU reads by itself."""
        if self.fallback:
            _tell(self.fallback)
            rows = torch.frombuffer(self.block, dtype=torch.uint8)
        else:
            file = self.block.detach()
            try:
                rows = torch.frombuffer(mmap.mmap(file, self.size), dtype=torch.uint8)
            finally:
                os.close(file)
        tensors = [_at(rows, *where) for where in self.tensors]
        return _Unpickler(self.content, [tensor.pin_memory() for tensor in tensors] if pinned else tensors).load()

    def pin_memory(self) -> Any:
        """What DataLoader calls where it is to pin batches."""
        return self.unpack(pinned=True)


def pack(batch: Any) -> Any:
    """What a worker process hands over for `batch`; the batch itself in the main process, and where it is an error."""
    if get_worker_info() is None or isinstance(batch, GraftError) or not hasattr(os, "memfd_create"):
        return batch
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(batch)
    tensors, size = [], 0
    for tensor in pickler.tensors:
        strides = torch.empty_like(tensor, device="meta").stride()  # those of `tensor`, without gaps
        tensors.append((tensor.dtype, tuple(tensor.shape), strides, size))
        size += -(-tensor.nbytes // ALIGNED) * ALIGNED
    size = max(size, ALIGNED)
    block, fallback = _block(pickler.tensors, tensors, size)
    return Parcel(file.getvalue(), tensors, size, block, fallback)


@cache
def _tell(reason: str) -> None:
    log.warning("note  worker processes hand batches over through a pipe, which is slower: %s", reason)


_impossible = ""
"""Why this process can pass no file descriptors; found out once, because each attempt may leave one open."""


def _block(tensors: Sequence[Tensor], layout: Sequence[tuple[Any, ...]], size: int) -> tuple[Any, str]:
    global _impossible
    if not _impossible:
        try:
            file = os.memfd_create("graft-batch")
            try:
                os.ftruncate(file, size)
                _fill(mmap.mmap(file, size), tensors, layout)
                return reduction.DupFd(file), ""
            finally:
                os.close(file)
        except OSError as error:
            _impossible = f"{error.strerror or error} (temporary files are in {tempfile.gettempdir()})"
    content = bytearray(size)
    _fill(content, tensors, layout)
    return content, _impossible


def _fill(memory: Any, tensors: Sequence[Tensor], layout: Sequence[tuple[Any, ...]]) -> None:
    rows = torch.frombuffer(memory, dtype=torch.uint8)
    for tensor, where in zip(tensors, layout, strict=True):
        _at(rows, *where).copy_(tensor)


def _at(rows: Tensor, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Tensor:
    return rows[offset:].view(dtype).as_strided(shape, strides, offset // dtype.itemsize)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, tensors: Sequence[Tensor]) -> None:
        super().__init__(io.BytesIO(content))
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]


# Waiting


def batches_of(batches: Iterator[Any], timeout: float | None) -> Iterator[Any]:
    """What a DataLoader's own iterator gives, unpacked, with an end to every wait for its worker processes.

    Args:
        batches: the iterator.
        timeout: seconds that a batch may take; None: no limit.

    Raises:
        DataError: a worker process was killed, or none gave a batch in time; names it and what it was doing.
        GraftError: one that a worker process found.
    """
    workers: Sequence[BaseProcess] = getattr(batches, "_workers", ())
    watch = Watch(workers, timeout)
    try:
        while True:
            try:
                with watch.waiting():
                    batch = next(batches)
                    batch = batch.unpack() if isinstance(batch, Parcel) else batch
            except StopIteration:
                return
            except BaseException as error:
                reason = watch.verdict or _failure_behind(error, workers)
                end(batches, workers)
                if reason is None:
                    raise
                raise DataError(reason) from error
            if isinstance(batch, GraftError):
                # now: as part of the error's reference cycle the workers would be given ten seconds to hear of it
                end(batches, workers)
                raise batch
            yield batch
    finally:
        watch.close()


def started(start: Callable[[], Iterator[Any]], count: int) -> Iterator[Any]:
    """What `start` returns; a DataError where it cannot start its `count` worker processes."""
    try:
        return start()
    except OSError as error:
        raise DataError(
            f"data.num_workers={count}: the worker processes cannot be started ({error}). "
            f"{shared_memory()}\nSet data.num_workers=0, which needs none."
        ) from error


def end(batches: Iterator[Any], workers: Sequence[BaseProcess]) -> None:
    """End the worker processes of a DataLoader's iterator, stopped ones too."""
    for _ in range(2):  # torch's handler of SIGCHLD breaks into the first round
        with contextlib.suppress(RuntimeError):
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.join()
    with contextlib.suppress(RuntimeError):
        getattr(batches, "_shutdown_workers", lambda: None)()


class Watch:
    """A thread that ends waits which take too long: it finds the reason and kills the worker processes, by which
    whatever the main thread waits for breaks off. (It may be a socket of a stopped worker, for which DataLoader's own
    `timeout` is of no use.)

    Attributes:
        verdict: why nothing came; None while all is well.
    """

    def __init__(self, workers: Sequence[BaseProcess], timeout: float | None) -> None:
        self.workers, self.timeout = workers, timeout
        self.verdict: str | None = None
        self._turn = 0  # odd while somebody waits
        self._closed = threading.Event()
        if workers:
            threading.Thread(target=self._run, name="waiting for batches", daemon=True).start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, time counts."""
        self._turn += 1
        try:
            yield
        finally:
            self._turn += 1

    def close(self) -> None:
        """Let the thread end."""
        self._closed.set()

    def _run(self) -> None:
        timeout = float("inf") if self.timeout is None else self.timeout
        tick = min(TICK, timeout / 10)
        waited, turn, told = 0.0, 0, False
        # Time is counted in ticks: while the whole run is stopped (Ctrl-Z), nobody waits.
        while not self._closed.wait(tick):
            if self._turn % 2 == 0 or self._turn != turn:
                waited, turn = 0.0, self._turn
                continue
            waited += tick
            if waited >= timeout:
                self.verdict = (
                    f"data.timeout={timeout:g}: the worker processes gave no batch for {timeout:g} seconds: "
                    f"{doing(self.workers)}.\n"
                    "Where they are only slow, raise data.timeout; data.num_workers=0 loads without them."
                )
                for worker in self.workers:
                    worker.kill()
                return
            if waited >= (WARN_AT * timeout if timeout < float("inf") else 60.0) and not told:
                told = True
                log.warning("waiting for a batch: %s", doing(self.workers))


def doing(workers: Sequence[BaseProcess]) -> str:
    """What keeps worker processes from giving a batch, as far as the system knows."""
    said = []
    for worker in workers:
        pid = worker.pid or 0
        state, name = process_state(pid), f"worker process {pid}"
        if state in ("T", "t"):
            said.append(f"{name} is stopped (SIGSTOP; kill -CONT {pid} continues it)")
        elif not worker.is_alive():
            said.append(f"{name} has ended with exit code {worker.exitcode}")
        elif files := _open_images(pid):
            waits = ", waiting for the disk or the network" if state == "D" else ""
            said.append(f"{name} is reading {', '.join(files)}{waits}")
    if said:
        return "; ".join(said)
    return f"worker processes {', '.join(str(worker.pid) for worker in workers)} are running, and no reason is known"


def _open_images(pid: int) -> list[str]:
    from graft.data.images import EXTENSIONS

    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry.path))
    return sorted({ascii(path)[1:-1] for path in found if path.lower().endswith(EXTENSIONS)})


_KILLED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\. |exited)")


def failure_of(error: BaseException) -> str | None:
    """Plain words for torch's error about a worker process that ended; None for any other."""
    found = _KILLED.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    numbers = {signal.strsignal(number): number for number in signal.valid_signals()}
    return _ended(found[1], numbers.get(found[2] or ""))


def _failure_behind(error: BaseException, workers: Sequence[BaseProcess]) -> str | None:
    """Plain words for an error that the end of a worker process, or the connection to it, has caused; None for any
    other."""
    told = failure_of(error)
    if told is None and not isinstance(error, OSError | EOFError):
        return None
    try:
        ending = connection.wait([worker.sentinel for worker in workers], 1.0)
        for worker in workers:
            worker.join(1.0 if worker.sentinel in ending else 0)  # its files are closed a moment before it has ended
        dead = [worker for worker in workers if worker.exitcode]
    except RuntimeError as later:  # torch's handler of SIGCHLD
        return failure_of(later)
    if dead:
        return _ended(str(dead[0].pid), -(dead[0].exitcode or 0))
    return (
        told or f"a batch cannot be received from a worker process ({error}).\ndata.num_workers=0 loads without them."
    )


def _ended(pids: str, number: int | None) -> str:
    """What happened to a worker process that ended, of signal `number` if that is one."""
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
    """Turn torch's error about a worker process that ended, which can come between any two lines, into a DataError."""
    try:
        yield
    except RuntimeError as error:
        reason = failure_of(error)
        if reason is None:
            raise
        raise DataError(reason) from error


def shared_memory() -> str:
    """How much room /dev/shm has, in a sentence; "" where there is no such thing."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return ""
    return (
        f"{SHARED_MEMORY} has {usage.free / 2**20:.1f} of {usage.total / 2**20:.1f} MB free "
        "(docker run --shm-size=1g gives a container more)."
    )


def _continue_workers() -> None:
    """A stopped worker would keep this process from ending: multiprocessing waits for it without a limit."""
    import multiprocessing

    for child in multiprocessing.active_children():
        if child.daemon and child.pid is not None and process_state(child.pid) == "T":
            with contextlib.suppress(OSError):
                os.kill(child.pid, signal.SIGCONT)


util.Finalize(None, _continue_workers, exitpriority=10)
