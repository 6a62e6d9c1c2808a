"""Runs Graft's commands as a user would, in a separate process."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from preloaded import WITH_TORCH, WITHOUT_TORCH, Program
from subprocess_targets import train_here

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finished:
    """A finished command: exit code, output and run folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


def train(folder: Path, *overrides: str, timeout: float = 300, fresh: bool = False, **environment: str) -> Finished:
    """`python train.py OVERRIDES` with its run folder at `folder`, in an empty working directory."""
    words = (str(ROOT / "train.py"), f"hydra.run.dir={folder}", *overrides)
    return command(folder, *words, timeout=timeout, fresh=fresh, **environment)


def command(
    folder: Path,
    *words: str,
    timeout: float = 300,
    before: Sequence[str] = (),
    fresh: bool = False,
    **environment: str,
) -> Finished:
    """`BEFORE python WORDS` in `folder`'s parent.

    With `fresh`, and where the start of Python itself matters (`before`, an environment), in a new interpreter;
    otherwise in a process forked from one that has imported torch, or only Hydra for `-c CODE`, which saves seconds.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    variables = {**os.environ, "HYDRA_FULL_ERROR": "0", **environment}
    if not (fresh or before or environment):
        return _forked(folder, words, variables, timeout)
    done = subprocess.run(
        [*before, sys.executable, *words],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=variables,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr, folder)


def _forked(folder: Path, words: Sequence[str], variables: Mapping[str, str], timeout: float) -> Finished:
    with tempfile.TemporaryDirectory() as outputs:
        out, err = Path(outputs) / "out", Path(outputs) / "err"
        modules = WITHOUT_TORCH if words[0] == "-c" else WITH_TORCH
        program = Program(words, folder.parent, variables, out, err, modules)
        try:
            code = program.wait(timeout)
        finally:
            program.kill()
        return Finished(code, out.read_text(), err.read_text(), folder)


def weights(run: Finished, name: str = "last") -> dict[str, Any]:
    """The tensors of the run's checkpoint `name`; the trained ones where averaged ones are saved too."""
    import torch

    content = torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content.get("current_model_state") or content["state_dict"]


def succeeded(run: Finished) -> Finished:
    """`run`, which must have exited with 0."""
    assert run.code == 0, run.err
    return run


def signal_after_first_checkpoint(
    folder: Path, number: signal.Signals, *overrides: str, delay: float = 0, options: Sequence[str] = ()
) -> tuple[int, str]:
    """Start `python train.py OPTIONS OVERRIDES` and send it a signal `delay` seconds after it has written last.ckpt;
    returns its exit code and what it printed."""
    words = (str(ROOT / "train.py"), *options, f"hydra.run.dir={folder}", *overrides)
    with tempfile.TemporaryDirectory() as outputs:
        out = Path(outputs) / "out"
        program = Program(words, folder.parent, os.environ, out, Path(os.devnull))
        try:
            last = folder / "checkpoints" / "last.ckpt"
            while not last.is_file() and program.running():
                time.sleep(0.002)
            time.sleep(delay)
            if program.running():
                os.kill(program.pid, number)
            return program.wait(60), out.read_text()
        finally:
            program.kill()


def started(folder: Path, *words: str) -> BaseProcess:
    """A run in a separate process that starts at once, because it forks from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["graft.tasks.fit"])
    child = context.Process(target=train_here, args=(folder, *words))
    child.start()
    return child


def summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """The summaries of the runs in `folder`, by the names of their folders."""
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
"""Overrides of a run that takes seconds."""

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
"""Overrides of a run that takes a second after the import of torch."""

SMALL = (
    "model=vgg_custom", "model.table=[8,M,16,M]", "model.classifier=vgg", "model.input_size=32",
    "model.average_pool=2", "model.hidden=64", "strategy=scratch", "data=digits", "augment=basic",
    "logger.tensorboard=false", "trainer.precision=32-true", "trainer.log_every_n_steps=1",
)  # fmt: skip
"""Overrides of a network with all stages of a VGG, with no limits on the number of batches."""

FOUR_JOBS = (*TINY, "seed=0,1", "optimizer.lr=0.05,0.02")
"""Overrides of a sweep with four jobs."""
