"""Garbage collection is paused during imports and restored afterwards."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import QUICK, ROOT, succeeded, train

from graft.system.startup import garbage_collection_paused

PROBE = """
import gc, sys
from graft.cli import main

walks = {True: 0, False: 0}

def count(phase, info):
    if phase == "start":
        walks["torch" in sys.modules and "graft.tasks.fit" not in sys.modules] += 1

gc.callbacks.append(count)
main("train")
print("WALKS", walks[True], walks[False] > 0)
"""


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_restored_afterwards(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with garbage_collection_paused():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_a_run_collects_garbage_while_training_but_not_while_importing(tmp_path: Path) -> None:
    words = [*QUICK, f"hydra.run.dir={tmp_path / 'run'}", "trainer.limit_train_batches=1", "review=none"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], capture_output=True, text=True, check=True, env=environment
    )
    assert "WALKS 0 True" in done.stdout


def test_a_run_ends_without_reported_leaks(tmp_path: Path) -> None:
    """What is frozen when Python ends is not collected, and some libraries then complain of it."""
    run = succeeded(train(tmp_path / "run", *QUICK, "trainer.limit_train_batches=1", "review=none", fresh=True))
    assert "leak" not in run.out + run.err
