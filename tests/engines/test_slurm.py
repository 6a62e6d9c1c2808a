"""A real Slurm, of one node: `pytest -m slurm`, where Debian's slurm-wlm and munge are installed."""

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import FOUR_JOBS, ROOT, TINY, command, succeeded, summaries, train

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TRAIN = str(ROOT / "train.py")
WITHOUT_NORM = (*TINY, "model.classifier=linear", "model.average_pool=2", "trainer.accelerator=cpu")
"""Overrides with which several processes learn exactly what one does."""


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


def output_of(environment: dict[str, str], *words: str, folder: Path | None = None) -> str:
    """What a command of Slurm printed."""
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """What `condition` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return answer


def queued(environment: dict[str, str], job: str) -> bool:
    """Whether `job` is pending."""
    return output_of(environment, "squeue", "--noheader", f"--job={job}", "--format=%t").strip() == "PD"


def test_a_sweep_runs_as_jobs_of_slurm_and_one_that_is_preempted_resumes(slurm: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    jobs = tmp_path / "outputs/sweep/it"
    words = (
        *FOUR_JOBS, "trainer.max_epochs=40", f"paths.outputs={tmp_path}/outputs", "sweep_name=it",
        "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1",
    )  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, TRAIN, "-m", *words],
        cwd=tmp_path, env=slurm, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    until(lambda: (jobs / "0/checkpoints/last.ckpt").is_file() or started.poll() is not None)

    listed = output_of(slurm, "squeue", "--noheader", "--array", "--format=%i").split()
    (first,) = [job for job in listed if job.endswith("_0")]
    preempting = subprocess.Popen(["scancel", "--signal=USR2", first], env=slurm)
    until(lambda: queued(slurm, first))
    until(lambda: "ended" in summaries(jobs)["0"], seconds=30)  # it left in order
    before = summaries(jobs)["0"]
    preempting.kill()  # it would try again for half a minute: the job has left before the answer came
    preempting.wait()
    output_of(slurm, "scontrol", "update", f"job={first}", "StartTime=now")
    out, _ = started.communicate(timeout=400)
    assert started.returncode == 0, out

    ended = summaries(jobs)
    assert {name: run["status"] for name, run in ended.items()} == dict.fromkeys("0123", "finished")
    assert [ended[name]["attempts"] for name in "0123"] == [2, 1, 1, 1]
    assert before["status"] == "interrupted"
    straight = succeeded(train(tmp_path / "run", *TINY, "trainer.max_epochs=40", "seed=0", "optimizer.lr=0.05"))
    assert ended["0"]["metrics"] == straight.summary["metrics"]


def test_two_tasks_of_srun_make_one_run_that_equals_one_process(slurm: dict[str, str], tmp_path: Path) -> None:
    whole = [word for word in WITHOUT_NORM if "limit_" not in word]
    common = (*whole, "trainer.max_epochs=1", "optimizer.momentum=0", "optimizer.lr=0.002")
    words = (sys.executable, TRAIN, *common, "trainer=ddp_slurm", "data.batch_size=16")
    out = output_of(slurm, "srun", "--ntasks-per-node=2", *words, folder=tmp_path)
    assert out.count("epoch 1/1") == 1, "one process speaks"
    (folder,) = (tmp_path / "outputs/train").iterdir()
    assert folder.name.startswith("slurm_")
    one = succeeded(train(tmp_path / "one", *common, "data.batch_size=32"))
    got = summaries(folder.parent)[folder.name]["metrics"]
    for name in ("val/loss", "val/acc", "test/loss", "test/acc"):
        assert got[name] == pytest.approx(one.summary["metrics"][name], abs=1e-4)


def test_a_requeued_job_of_two_tasks_resumes_in_its_folder(slurm: dict[str, str], tmp_path: Path) -> None:
    words = " ".join([sys.executable, TRAIN, *WITHOUT_NORM, "trainer=ddp_slurm", "trainer.max_epochs=40"])
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --ntasks-per-node=2\n#SBATCH --output={tmp_path}/job.log\n#SBATCH --open-mode=append\n"
        f"srun {words}\n"
    )
    job = output_of(slurm, "sbatch", "--parsable", str(script), folder=tmp_path).strip()
    run = tmp_path / f"outputs/train/slurm_{job}.0"
    until((run / "checkpoints/last.ckpt").is_file)
    output_of(slurm, "scontrol", "requeue", job)
    until(lambda: queued(slurm, job))
    assert summaries(run.parent)[run.name]["status"] == "interrupted"
    output_of(slurm, "scontrol", "update", f"job={job}", "StartTime=now")
    until(lambda: summaries(run.parent)[run.name]["status"] != "interrupted")
    ended = summaries(run.parent)
    assert {name: (end["status"], end["attempts"], end["epochs"]) for name, end in ended.items()} == {
        run.name: ("finished", 2, 40)
    }, (tmp_path / "job.log").read_text()
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps), "no step is logged twice"


def test_tasks_that_would_each_do_the_whole_run_are_refused(slurm: dict[str, str], tmp_path: Path) -> None:
    words = ("srun", "--ntasks=2", sys.executable, TRAIN, *TINY)
    done = subprocess.run(words, cwd=tmp_path, env=slurm, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "srun has started 2 tasks" in done.stderr
    alone = command(tmp_path / "run", TRAIN, *TINY, "trainer=ddp_slurm")
    assert alone.code == 1
    assert "no tasks of srun" in alone.err
