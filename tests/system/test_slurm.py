"""Environment variables of Slurm's tasks."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from graft.config import conf_dir
from graft.config.registration import register
from graft.errors import ConfigError
from graft.system.slurm import Tasks, first_task, slurm_tasks
from graft.tasks import fit
from graft.tasks.checks import settle
from graft.tasks.run import Run

STEP = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "17",
        "SLURM_STEP_ID": "1"}  # fmt: skip


@pytest.fixture
def sixth_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)


def composed(*overrides: str):
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose("train", ["model=vgg_mini", "data=digits", "strategy=scratch", *overrides])


def test_a_slurm_task_knows_its_rank(sixth_of_eight: None) -> None:
    assert slurm_tasks() == Tasks(rank=5, count=8, nodes=2, step="17.1")
    assert not first_task()


def test_a_batch_script_that_calls_no_srun_is_one_process() -> None:
    batch = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "17"}
    assert slurm_tasks(batch) is None
    assert first_task()


def test_nodes_and_devices_follow_from_srun(sixth_of_eight: None) -> None:
    trainer = settle(composed("trainer=ddp_slurm")).trainer
    assert (trainer.num_nodes, trainer.devices) == (2, 4)


def test_several_tasks_without_ddp_slurm_are_refused(sixth_of_eight: None) -> None:
    with pytest.raises(ConfigError, match="srun has started 8 tasks"):
        settle(composed("trainer=cpu"))


def test_nodes_with_different_numbers_of_tasks_are_refused(
    sixth_of_eight: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "7")
    with pytest.raises(ConfigError, match="7 tasks on 2 nodes"):
        settle(composed("trainer=ddp_slurm"))


def test_a_late_task_keeps_the_files_of_the_first(
    sixth_of_eight: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events = tmp_path / "events.out.tfevents.1"
    events.write_text("the first task's")
    monkeypatch.setattr(fit, "one_process", lambda *_: {})
    record = Run(tmp_path, {"config": {}, "overrides": [], "swept": []})
    fit.run(settle(composed("trainer=ddp_slurm", "trainer.accelerator=cpu", "resume=auto")), None, record)
    assert events.is_file()
