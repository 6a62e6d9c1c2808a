"""A real Ray, of this machine: `pytest -m ray`, where the extra `ray` is installed."""

from pathlib import Path

import pytest
from commands import FOUR_JOBS, ROOT, Finished, command, succeeded, summaries

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_sweep_runs_as_tasks_of_ray_and_is_completed_by_the_same_command(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    jobs = tmp_path / "outputs/sweep/it"

    def sweep(*words: str) -> Finished:
        common = (f"paths.outputs={tmp_path}/outputs", "sweep_name=it", "trainer.max_epochs=2", "hydra/launcher=ray")
        own = (str(ROOT / "train.py"), "-m", *FOUR_JOBS, *common, "hydra.launcher.ray.init.num_cpus=2", *words)
        return succeeded(command(jobs, *own))

    sweep("seed=0")
    half = summaries(jobs)
    assert {name: run["status"] for name, run in half.items()} == dict.fromkeys("01", "finished")

    again = sweep()
    assert "2 of 4 jobs are finished; 2 to go" in again.out
    whole = summaries(jobs)
    assert {name: run["status"] for name, run in whole.items()} == dict.fromkeys("0123", "finished")
    assert {name: whole[name] for name in half} == half
    assert (jobs / "compare.md").is_file()
