"""Running Graft as a user would, in a process of its own."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from errands import train_here

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finished:
    """A finished command: exit code, what it printed, and its run folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


def train(folder: Path, *overrides: str, timeout: float = 300, **environment: str) -> Finished:
    """`python train.py OVERRIDES` with its run folder at `folder`, in an empty working directory."""
    return command(
        folder, str(ROOT / "train.py"), f"hydra.run.dir={folder}", *overrides, timeout=timeout, **environment
    )


def command(
    folder: Path, *words: str, timeout: float = 300, before: Sequence[str] = (), **environment: str
) -> Finished:
    """`BEFORE python WORDS` in `folder`'s parent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*before, sys.executable, *words],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "HYDRA_FULL_ERROR": "0", **environment},
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr, folder)


def succeeded(run: Finished) -> Finished:
    """`run`, which must have exited with 0."""
    assert run.code == 0, run.err
    return run


def signal_after_first_checkpoint(
    folder: Path, number: signal.Signals, *overrides: str, delay: float = 0
) -> tuple[int, str]:
    """Start `python train.py OVERRIDES` and send it a signal `delay` seconds after it has written last.ckpt; returns
    its exit code and what it printed."""
    words = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={folder}", *overrides]
    started = subprocess.Popen(
        words,
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a background shell ignores it for its children
    )
    last = folder / "checkpoints" / "last.ckpt"
    while not last.is_file() and started.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    try:
        started.send_signal(number)
        out, _ = started.communicate(timeout=60)
        return started.returncode, out
    finally:
        started.kill()


def started(folder: Path, *words: str) -> BaseProcess:
    """A run in a process of its own that is there at once: it forks from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["graft.tasks.fit"])
    child = context.Process(target=train_here, args=(folder, *words))
    child.start()
    return child


def summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """What the runs right below `folder` say, by the names of their folders."""
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/summary.json")}


QUICK = (
    "model=vgg_mini",
    "strategy=scratch",
    "data=digits",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "logger.tensorboard=false",
)
"""A run of seconds."""

TINY = (
    "model=vgg_custom",
    "model.table=[8,M,16,M]",
    "model.classifier=pooled",
    "model.input_size=32",
    "strategy=scratch",
    "data=digits",
    "augment=basic",
    "review=none",
    "data.num_workers=0",
    "trainer.precision=32-true",
    "trainer.limit_train_batches=6",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
)
"""A run of a second, once torch is there."""

FOUR_JOBS = (*TINY, "seed=0,1", "optimizer.lr=0.05,0.02")
"""A sweep of four."""
