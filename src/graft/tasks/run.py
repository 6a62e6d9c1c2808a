"""A run's folder and its summary.json, which is written atomically, also if the run fails."""

import contextlib
import json
import logging
import os
import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graft import __version__
from graft.errors import DataError
from graft.report.summary import FILE, LARGEST, Summary
from graft.system.cpu import available_cores
from graft.system.files import read_regular, write_atomically
from graft.system.git import checkout
from graft.system.slurm import first_task

log = logging.getLogger("graft")

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "numpy", "timm")


class Run:
    """The record of a run: its folder and its summary.

    Args:
        folder: of the run.
        summary: content of summary.json so far; the tasks add to it.
    """

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder = folder
        self.summary = summary
        self.writes = first_task()

    @classmethod
    def open(
        cls, folder: Path, *, seed: int, identity: str, overrides: Sequence[str] = (), resuming: bool = False
    ) -> "Run":
        """Start the record of a run in `folder`.

        Args:
            folder: of the run.
            seed: of the run.
            identity: hash of its configuration (`graft.config.config_hash`).
            overrides: of the command line, e.g. "optimizer.lr=0.1".
            resuming: continue the time and attempts of the run in `folder`, if it has the same identity.
        """
        earlier = earlier_run(folder, identity) if resuming else {}
        return cls(
            folder,
            {
                "status": "interrupted",  # until it ends: a killed run cannot update it
                "metrics": {},
                "epochs": 0,
                "seconds": seconds_spent(folder, earlier),
                "attempts": earlier.get("attempts", 0) + 1,
                "seed": seed,
                "config": {},
                "identity": identity,
                "overrides": list(overrides),
                "started": now(),
                "machine": machine(),
                "process": {"host": platform.node(), "pid": os.getpid()},
                "versions": versions(),
                "git": checkout(),
            },
        )

    @contextmanager
    def recording(self) -> Iterator["Run"]:
        """A context for the run itself; at its end summary.json has the status and the duration."""
        started = time.perf_counter() - self.summary["seconds"]
        self.write()
        try:
            yield self
            if self.summary["status"] == "interrupted":
                self.summary["status"] = "finished"
        except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C and SIGTERM into an exit
            self.summary["status"] = "interrupted"
            raise KeyboardInterrupt from None
        except BaseException as error:
            self.summary |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            if not getattr(error, "__module__", "").startswith("graft."):
                self.summary["traceback"] = traceback.format_exc()
            raise
        finally:
            self.summary["seconds"] = round(time.perf_counter() - started, 2)
            self.summary["ended"] = now()
            self.write()

    def fail(self, reason: str) -> None:
        """Record a failure of the run from outside, e.g. if its process was killed."""
        self.summary |= {"status": "failed", "error": reason, "ended": now()}
        self.write()

    def write(self) -> None:
        """Write summary.json atomically; of several Slurm tasks only the first writes."""
        if not self.writes:
            return
        text = json.dumps(self.summary, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / "summary.json", text.encode())


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of summary.json in `folder`; empty if it is missing or unreadable."""
    try:
        summary = json.loads(read_regular(folder / FILE, LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


def valid_summary(folder: Path) -> dict[str, Any]:
    """The content of summary.json in `folder` if it is valid; else empty, with a warning in the log."""
    summary = read_summary(folder)
    try:
        if summary:
            Summary.of(summary, folder)
        return summary
    except DataError as error:
        log.warning("note  %s: not the summary of a run (%s)", folder / FILE, error)
        return {}


def earlier_run(folder: Path, identity: str) -> dict[str, Any]:
    """The summary of the run in `folder` if it has the same identity; else empty."""
    summary = valid_summary(folder)
    return summary if summary.get("identity") == identity else {}


def seconds_spent(folder: Path, earlier: dict[str, Any]) -> float:
    """Duration of the unfinished run `earlier`, up to its last checkpoint if it was killed; 0 without one."""
    last = folder / "checkpoints" / "last.ckpt"
    if not earlier or not last.is_file():
        return 0.0
    killed = "ended" not in earlier and "started" in earlier
    since = last.stat().st_mtime - datetime.fromisoformat(earlier["started"]).timestamp() if killed else 0.0
    return round(earlier["seconds"] + max(0.0, since), 2)


def now() -> str:
    """The current time in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def versions() -> dict[str, str]:
    """Versions of Python, the platform, Graft and the packages that affect results."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "graft": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor and the cores that this process may use, e.g. "AMD EPYC, 2 cores"."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = available_cores()
    return f"{name}, {cores} core{'s' if cores != 1 else ''}"
