"""A real Slurm, of one node: `pytest -m slurm`, where Debian's slurm-wlm and munge are installed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, command, succeeded, summaries, train
from commands import TINY as TINY_WITH_NORM

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TINY = (*TINY_WITH_NORM, "model.classifier=linear", "model.average_pool=2")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands find the cluster."""
    path = os.environ["PATH"] + ":/usr/sbin"
    if any(shutil.which(tool, path=path) is None for tool in ("slurmctld", "slurmd", "munged", "srun")):
        pytest.skip("Slurm is not installed (apt-get install --no-install-recommends slurm-wlm munge)")
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / "tests/engines/slurm.sh")
    subprocess.run([script, "start", str(folder)], check=True, timeout=60)
    yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "HYDRA_FULL_ERROR": "0", "MASTER_ADDR": "127.0.0.1"}
    subprocess.run([script, "stop", str(folder)], check=True, timeout=60)


def until(condition: Callable[[], Any], started: subprocess.Popen[str], seconds: float = 240) -> Any:
    """What `condition` gives as soon as it is true, while `started` runs."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, "waited in vain"
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.1)
    return answer


def test_a_sweep_runs_as_jobs_of_slurm_and_one_that_is_preempted_resumes(slurm: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    jobs, epochs = tmp_path / "outputs/sweep/it", ("trainer.max_epochs=30",)
    words = (
        "-m", *TINY, *epochs, f"paths.outputs={tmp_path}/outputs", "sweep_name=it",
        "seed=0,1", "optimizer.lr=0.05,1e20",
        "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1",
    )  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path, env=slurm, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    until((jobs / "0/checkpoints/last.ckpt").is_file, started)

    def said(*command: str) -> str:
        return subprocess.run(command, env=slurm, capture_output=True, text=True, check=False).stdout

    (first,) = [line.split()[0] for line in said("squeue", "--noheader", "--array", "--format=%i %t").splitlines()
                if line.split()[0].endswith("_0")]  # fmt: skip
    preempting = subprocess.Popen(["scancel", "--signal=USR2", first], env=slurm)
    until(lambda: said("squeue", "--noheader", f"--job={first}", "--format=%t").strip() == "PD", started)
    assert summaries(jobs)["0"]["status"] == "interrupted"
    preempting.kill()  # it would try again for minutes: the job has left before the answer came
    preempting.wait()
    said("scontrol", "update", f"job={first}", "StartTime=now")
    out, _ = started.communicate(timeout=400)
    assert started.returncode == 1, out

    ended = summaries(jobs)
    assert {name: run["status"] for name, run in ended.items()} == {
        "0": "finished", "1": "failed", "2": "finished", "3": "failed",
    }  # fmt: skip
    assert (ended["0"]["attempts"], ended["2"]["attempts"]) == (2, 1)
    assert "training diverged" in ended["1"]["error"]
    assert "Run what is not finished" in out
    straight = succeeded(train(tmp_path / "run", *TINY, *epochs, "seed=0", "optimizer.lr=0.05"))
    assert ended["0"]["metrics"] == straight.summary["metrics"]


def srun(*words: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A finished `srun WORDS`."""
    return subprocess.run(
        ["srun", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_two_tasks_of_srun_make_one_run_that_equals_one_process(slurm: dict[str, str], tmp_path: Path) -> None:
    whole = [word for word in TINY if "limit_" not in word]
    common = (*whole, "trainer.accelerator=cpu", "trainer.max_epochs=1", "optimizer.momentum=0", "optimizer.lr=0.002")
    words = [sys.executable, str(ROOT / "train.py"), *common, "trainer=ddp_slurm", "data.batch_size=16"]
    two = subprocess.run(
        ["srun", "--ntasks-per-node=2", *words],
        cwd=tmp_path,
        env=slurm,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("epoch 1/1") == 1, "one process speaks"
    (folder,) = (tmp_path / "outputs/train").iterdir()
    assert folder.name.startswith("slurm_")
    one = succeeded(train(tmp_path / "one", *common, "data.batch_size=32"))
    got = summaries(folder.parent)[folder.name]["metrics"]
    for name in ("val/loss", "val/acc", "test/loss", "test/acc"):
        assert got[name] == pytest.approx(one.summary["metrics"][name], abs=1e-4)


def test_tasks_that_would_each_do_the_whole_run_are_refused(slurm: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "train.py"), *TINY]
    done = subprocess.run(
        ["srun", "--ntasks=2", *words],
        cwd=tmp_path,
        env=slurm,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert "srun has started 2 tasks" in done.stderr
    alone = command(tmp_path / "run", str(ROOT / "train.py"), *TINY, "trainer=ddp_slurm")
    assert alone.code == 1
    assert "no tasks of srun" in alone.err
