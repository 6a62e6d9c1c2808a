"""Sweeps as a user runs them: killed, failing, resumed, in parallel, and searches."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, TINY, Finished, command, succeeded, summaries, train

from graft.system.locks import process_state


def sweep(folder: Path, *words: str) -> Finished:
    """`python train.py -m WORDS` with everything below `folder`, the sweep in outputs/sweep/it."""
    return command(folder / "outputs/sweep/it", *sweep_words(folder, *words))


def sweep_words(folder: Path, *words: str) -> list[str]:
    return [str(ROOT / "train.py"), "-m", *TINY, f"paths.outputs={folder}/outputs", "sweep_name=it", *words]


def killed_when(condition: Callable[[], bool], folder: Path, *words: str) -> subprocess.Popen[str]:
    """The same, started and not waited for until `condition` holds; the caller kills what it likes."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "HYDRA_FULL_ERROR": "0"}
    started = subprocess.Popen(
        [sys.executable, *sweep_words(folder, *words)],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not condition():
        assert started.poll() is None, started.communicate()[0]
        time.sleep(0.005)
    return started


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def killed_and_completed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Finished]:
    """Four jobs, the third of which cannot work; kill -9 while the second is under way; the same command again."""
    folder = tmp_path_factory.mktemp("killed")
    grid = ("seed=1,2", "optimizer.lr=0.05,1e20", "trainer.max_epochs=3")
    jobs = folder / "outputs/sweep/it"
    started = killed_when((jobs / "2/checkpoints/last.ckpt").is_file, folder, *grid)
    started.kill()
    started.wait()
    return jobs, summaries(jobs), sweep(folder, *grid)


def test_a_killed_grid_is_completed_by_the_same_command(
    killed_and_completed: tuple[Path, dict[str, Any], Finished],
) -> None:
    jobs, half, again = killed_and_completed
    whole = summaries(jobs)
    assert {name: run["status"] for name, run in half.items()} == {"0": "finished", "1": "failed", "2": "interrupted"}
    assert {name: run["status"] for name, run in whole.items()} == {
        "0": "finished", "1": "failed", "2": "finished", "3": "failed",
    }  # fmt: skip
    assert whole["0"] == half["0"], "what is finished is not run again"
    assert "1 of 4 jobs are finished; 3 to go" in again.out
    assert whole["2"]["attempts"] == 2


def test_an_interrupted_job_ends_with_the_result_of_an_uninterrupted_one(
    killed_and_completed: tuple[Path, dict[str, Any], Finished], tmp_path: Path
) -> None:
    jobs, _, _ = killed_and_completed
    straight = succeeded(train(tmp_path / "run", *TINY, "seed=2", "optimizer.lr=0.05", "trainer.max_epochs=3"))
    assert summary(jobs / "2")["metrics"] == straight.summary["metrics"]
    assert (jobs / "2/metrics.csv").read_bytes() == (straight.folder / "metrics.csv").read_bytes()
    for name in ("last", "best"):
        ours, theirs = (
            torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
            for folder in (jobs / "2", straight.folder)
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_failing_job_does_not_stop_the_others_and_the_resume_command_is_printed(
    killed_and_completed: tuple[Path, dict[str, Any], Finished],
) -> None:
    jobs, _, again = killed_and_completed
    assert "training diverged" in summary(jobs / "1")["error"]
    assert again.code == 1
    last = again.err.strip().splitlines()
    assert [line.split("  ")[1] for line in last if line.startswith("failed  ")] == [str(jobs / "1"), str(jobs / "3")]
    assert "sweep_name=it" in last[-1]
    assert "optimizer.lr=0.05,1e20" in last[-1]
    assert "1 not finished" not in (jobs / "compare.md").read_text().split("0.05")[1].splitlines()[0]


def test_a_killed_parallel_job_is_reported_and_the_others_continue(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    jobs = tmp_path / "outputs/sweep/it"
    started = killed_when(
        lambda: all((jobs / name / "checkpoints/last.ckpt").is_file() for name in "01"),
        tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2", "trainer.max_epochs=200",
    )  # fmt: skip
    os.kill(summary(jobs / "0")["process"]["pid"], signal.SIGKILL)
    while not (jobs / "2/checkpoints/last.ckpt").is_file():  # the next job has the slot of the killed one
        assert started.poll() is None
        time.sleep(0.01)
    started.kill()
    started.wait()
    for name in "12":  # what a sweep has started ends with it
        while process_state(summary(jobs / name)["process"]["pid"]) not in ("", "Z"):
            time.sleep(0.05)
        assert summary(jobs / name)["status"] == "interrupted"
    assert summary(jobs / "0")["status"] == "failed"
    assert "SIGKILL" in summary(jobs / "0")["error"]


@pytest.mark.slow
def test_a_search_with_two_parallel_jobs_prunes_trials_and_marks_them(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    pytest.importorskip("joblib")
    done = succeeded(
        sweep(
            tmp_path, "sweep=optuna", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=6",
            "optimizer.lr=tag(log,interval(1e-5,1))", "trainer.max_epochs=4", "optimized_metric=val/loss",
            "search.pruner=percentile", "search.percentile=1", "search.startup_trials=2", "callbacks.keep=best",
        )
    )  # fmt: skip
    jobs = tmp_path / "outputs/sweep/it"
    study = optuna.load_study(study_name="it", storage=f"sqlite:///{jobs}/study.db")
    states = [trial.state.name for trial in study.trials]
    assert len(states) == 6
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert sorted({file.name for file in jobs.glob("*/checkpoints/*")}) == ["best.ckpt"]
    ended = [run["status"] for run in summaries(jobs).values()]
    assert ended.count("pruned") == states.count("PRUNED")
    assert all(run["epochs"] < 4 for run in summaries(jobs).values() if run["status"] == "pruned")
    assert (jobs / "compare.md").read_text().count("(+1 pruned)") == states.count("PRUNED")
    first = (jobs / "compare.md").read_text().splitlines()[2]
    assert f"{study.best_params['optimizer.lr']:.4g}" in first
    assert "optuna-dashboard sqlite:///" in done.out
