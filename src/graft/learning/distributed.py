"""Starts a run in several processes on this machine with torch's elastic launcher."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from graft.errors import TrainingError
from graft.system.escaping import PrintableFormatter
from graft.system.signals import STOP, exit_on_second_signal
from graft.system.startup import safe_path

Result = dict[str, Any]


def launch(function: Callable[..., Result], count: int, *arguments: Any) -> Result:
    """Call `function(*arguments)` in `count` processes of one process group; returns the result of rank 0.

    Each gets the environment variables that Lightning reads (rank, world size, address), so Lightning starts no
    further processes, and Hydra runs once: there is one run folder.

    Args:
        function: importable by name; the same call in each process.
        count: number of processes on this machine.
        arguments: picklable; the last one is the run's folder.

    Raises:
        TrainingError: a process failed; carries its message.
        KeyboardInterrupt: the processes stopped on request.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    try:
        with safe_path():
            results = elastic_launch(config, _enter)(function, *arguments)
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TrainingError(f"process {rank} of {count} failed: {failure.message}") from error
    return results[0]


def environment_of(strategy: str) -> ClusterEnvironment:
    """The cluster environment through which the processes of a run find each other.

    Explicit, because Lightning would detect Slurm by its variables, which a Slurm job has even if it trains in one
    process.
    """
    if strategy == "ddp_slurm":
        return SLURMEnvironment(auto_requeue=False)
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else LightningEnvironment()


def _enter(function: Callable[..., Result], *arguments: Any) -> Result:
    folder: Path = arguments[-1]
    if os.environ["RANK"] == "0":
        handlers: list[logging.Handler] = [
            logging.StreamHandler(sys.stdout),
            logging.FileHandler(folder / "train.log"),
        ]
        for handler in handlers:
            handler.setFormatter(PrintableFormatter())
        logging.basicConfig(level=logging.INFO, handlers=handlers)
    exit_on_second_signal()
    with STOP.handling_signals():
        return function(*arguments)
