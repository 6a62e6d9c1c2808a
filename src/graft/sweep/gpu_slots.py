"""GPUs and CPU cores of this machine, divided into slots for jobs that run in parallel."""

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
from typing import TypeVar

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from graft.sweep.job_folders import INDEX
from graft.system.cpu import available_cores
from graft.system.gpu import visible_gpus
from graft.system.locks import holder_of

log = logging.getLogger("graft")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Slot:
    """GPUs and cores that a job may use; None: all of the machine."""

    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None

    def bind(self) -> None:
        """Restrict this process and its future children to the slot; call it before the first use of a GPU."""
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        if self.cores:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, self.cores)
            os.environ["OMP_NUM_THREADS"] = str(len(self.cores))
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(min(torch.get_num_threads(), len(self.cores)))


def jobs_at_once() -> int:
    """Default number of parallel jobs: one per GPU; without a GPU one per four cores, at least two where possible."""
    cores = available_cores()
    return len(visible_gpus()) or min(cores, max(2, cores // 4))


@contextmanager
def claimed_slot(count: int, sweep: Path) -> Iterator[Slot]:
    """Hold one of the `count` slots of `sweep` on this machine; waits while all are in use.

    The lock files are in the sweep's folder, because any user may write to a folder for temporary files.
    """
    if count <= 1:
        yield Slot()
        return
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:16]
    locks = sweep / INDEX / f"slots.{machine}"
    locks.mkdir(parents=True, exist_ok=True)
    number, lock = _acquire_free(locks, count)
    try:
        gpus, cores = visible_gpus(), available_cores()
        allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores))
        yield Slot(tuple(share(gpus, number, count)) or None, tuple(share(allowed[:cores], number, count)))
    finally:
        lock.release()


def _acquire_free(locks: Path, count: int) -> tuple[int, FileLock]:
    logged = False
    while True:
        for number in range(count):
            lock = FileLock(locks / str(number))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return number, lock
        if not logged:
            logged = True
            holders = ", ".join(sorted({holder_of(locks / str(number)) for number in range(count)}))
            log.info("waiting: all %d slots of this sweep on this machine are in use, by %s", count, holders)
        time.sleep(0.2)


def share(items: Sequence[Item], number: int, count: int) -> Sequence[Item]:
    """The items of slot `number` of `count`: disjoint parts of equal size, or one item, shared by several slots, where
    there are fewer items than slots."""
    size = len(items) // count
    if size:
        return items[number * size : (number + 1) * size]
    return items[number % len(items) :][:1] if items else items


def concurrent_jobs(launcher: DictConfig) -> int:
    """Jobs that a Hydra launcher runs in parallel on one machine: its n_jobs, or 1 if it has none."""
    return worker_count(launcher.get("n_jobs") or 1)


def worker_count(n_jobs: int) -> int:
    """Number of workers for `n_jobs` as joblib reads it: negative values count back from the cores (-1: all)."""
    return n_jobs if n_jobs > 0 else max(1, available_cores() + 1 + n_jobs)
