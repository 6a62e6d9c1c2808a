"""A run's folder and its summary.json, written whole whatever happens."""

import contextlib
import json
import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graft.data.cores import available_cores
from graft.files import write_atomically

PACKAGES = ("graft", "torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "numpy", "timm")


class Run:
    """One run: its folder and what will be said of it.

    Args:
        folder: where everything of the run goes.
        summary: what is known so far; the tasks add to it.
    """

    def __init__(self, folder: Path, summary: dict[str, Any]) -> None:
        self.folder = folder
        self.summary = summary

    @classmethod
    def open(cls, folder: Path, *, seed: int) -> "Run":
        """Take `folder` for a run of this seed."""
        return cls(
            folder,
            {
                "status": "failed",
                "metrics": {},
                "epochs": 0,
                "seconds": 0.0,
                "seed": seed,
                "config": {},
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": machine(),
                "versions": versions(),
                "git": git_state(),
            },
        )

    @contextmanager
    def recording(self) -> Iterator["Run"]:
        """Inside, the run is under way; on leaving, summary.json says how it ended."""
        started = time.perf_counter()
        try:
            yield self
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
            self.write()

    def write(self) -> None:
        """summary.json, atomically."""
        text = json.dumps(self.summary, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / "summary.json", text.encode())


def versions() -> dict[str, str]:
    """What the figures were made with."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
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


def git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout one stands in, or None outside of one."""
    ask: Callable[..., str] = lambda *words: subprocess.run(  # noqa: E731
        ["git", *words], capture_output=True, text=True, check=True, timeout=5
    ).stdout.strip()
    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
