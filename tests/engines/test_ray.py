"""A real Ray, of this machine: `pytest -m ray`, where the extra `ray` is installed."""

from pathlib import Path

import pytest
from commands import ROOT, TINY, command, summaries

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_sweep_runs_as_tasks_of_ray_and_is_completed_by_the_same_command(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    jobs = tmp_path / "outputs/sweep/it"
    words = (
        str(ROOT / "train.py"), "-m", *TINY, f"paths.outputs={tmp_path}/outputs", "sweep_name=it",
        "trainer.max_epochs=2", "hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2",
    )  # fmt: skip
    half = command(jobs, *words, "seed=0", "optimizer.lr=0.05,1e20")
    assert half.code == 1, half.err
    before = summaries(jobs)
    assert {name: run["status"] for name, run in before.items()} == {"0": "finished", "1": "failed"}
    assert "training diverged" in before["1"]["error"]

    whole = command(jobs, *words, "seed=0,1", "optimizer.lr=0.05,1e20")
    assert whole.code == 1, whole.err
    assert "1 of 4 jobs are finished; 3 to go" in whole.out
    after = summaries(jobs)
    assert {name: run["status"] for name, run in after.items()} == {
        "0": "finished", "1": "failed", "2": "finished", "3": "failed",
    }  # fmt: skip
    assert after["0"] == before["0"]
    assert (jobs / "compare.md").is_file()
