"""A real Ray cluster, of this machine: `pytest -m ray`, where the extra `ray` is installed."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import FOUR_JOBS, ROOT, Finished, command, succeeded, summaries

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = (sys.executable, "-m", "ray.scripts.scripts")


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which `address=auto` is a Ray cluster of one node, with room for two jobs at once."""
    pytest.importorskip("ray")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"RAY_ADDRESS": f"127.0.0.1:{port}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    folder = tempfile.mkdtemp(prefix="ray")  # short: the paths of its sockets have 107 characters at most
    words = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false",
             f"--temp-dir={folder}", "--disable-usage-stats"]  # fmt: skip
    head = subprocess.Popen(
        [*RAY, "start", *words], stdout=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **own}
    )
    try:
        end = time.monotonic() + 120
        while not reached(own):
            assert head.poll() is None
            assert time.monotonic() < end, "no cluster"
        yield own
    finally:
        head.terminate()
        head.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def reached(own: dict[str, str]) -> bool:
    """Does the cluster answer?"""
    environment = {**os.environ, **own}
    return not subprocess.run([*RAY, "status"], env=environment, capture_output=True, check=False).returncode


def test_a_sweep_runs_as_tasks_of_ray_and_is_completed_by_the_same_command(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    jobs = tmp_path / "outputs/sweep/it"

    def sweep(*words: str) -> Finished:
        own = (f"paths.outputs={tmp_path}/outputs", "sweep_name=it", "trainer.max_epochs=2", "hydra/launcher=ray")
        common = (str(ROOT / "train.py"), "-m", *FOUR_JOBS, *own, "hydra.launcher.ray.init.address=auto")
        return succeeded(command(jobs, *common, *words, **cluster))

    sweep("seed=0")
    half = summaries(jobs)
    assert {name: run["status"] for name, run in half.items()} == dict.fromkeys("01", "finished")

    again = sweep()
    assert "2 of 4 jobs are finished; 2 to go" in again.out
    assert "Connecting to existing Ray cluster" in again.out + again.err
    whole = summaries(jobs)
    assert {name: run["status"] for name, run in whole.items()} == dict.fromkeys("0123", "finished")
    assert {name: whole[name] for name in half} == half
    assert (jobs / "compare.md").is_file()
