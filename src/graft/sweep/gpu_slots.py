"""Which GPUs and which cores each of several jobs at once gets of this machine."""

import hashlib
import logging
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from graft.sweep.job_folders import INDEX
from graft.system.cpu import available_cores
from graft.system.gpu import visible_gpus
from graft.system.locks import holder_of

log = logging.getLogger("graft")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Slot:
    """The GPUs and cores that a job may use; None for all there are."""

    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None

    def bind(self) -> None:
        """Bind this process, and all it will start, to the slot. Before the first use of a GPU."""
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        if self.cores:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, self.cores)
            os.environ["OMP_NUM_THREADS"] = str(len(self.cores))
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(min(torch.get_num_threads(), len(self.cores)))


def jobs_at_once() -> int:
    """As many as there are GPUs; without one, a job for every four cores, or for every core where there are few."""
    cores = available_cores()
    return len(visible_gpus()) or min(cores, max(2, cores // 4))


@contextmanager
def claimed_slot(count: int, sweep: Path) -> Iterator[Slot]:
    """Hold one of the `count` slots that the jobs of `sweep` have on this machine; waits while all are taken.

    The locks lie in the folder of the sweep: a folder for temporary files is everybody's to write to.
    """
    if count <= 1:
        yield Slot()
        return
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:16]
    locks = sweep / INDEX / f"slots.{machine}"
    locks.mkdir(parents=True, exist_ok=True)
    number, lock = _first_free(locks, count)
    try:
        gpus, cores = visible_gpus(), available_cores()
        granted = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores))
        yield Slot(tuple(share(gpus, number, count)) or None, tuple(share(granted[:cores], number, count)))
    finally:
        lock.release()


def _first_free(locks: Path, count: int) -> tuple[int, FileLock]:
    told = False
    while True:
        for number in range(count):
            lock = FileLock(locks / str(number))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return number, lock
        if not told:
            told = True
            holders = ", ".join(sorted({holder_of(locks / str(number)) for number in range(count)}))
            log.info("waiting: all %d places of this sweep on this machine are taken, by %s", count, holders)
        time.sleep(0.2)


def share(items: Sequence[Item], number: int, count: int) -> Sequence[Item]:
    """The part of `items` for slot `number` of `count`: disjoint parts of one size, or one item for several slots where
    there are too few."""
    size = len(items) // count
    if size:
        return items[number * size : (number + 1) * size]
    return items[number % len(items) :][:1] if items else items


def concurrent_jobs(launcher: Any) -> int:
    """How many jobs a Hydra launcher runs at once on one machine: its n_jobs, if it has that."""
    count = launcher.get("n_jobs") or 1
    return count if count > 0 else max(1, available_cores() + 1 + count)
