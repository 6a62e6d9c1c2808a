"""What Slurm says to the tasks that srun has started."""

import pytest
from hydra import compose, initialize_config_dir

from graft.config import conf_dir
from graft.config.schema import register
from graft.config.validation import settle
from graft.errors import ConfigError
from graft.slurm import Tasks, first_task, slurm_tasks

STEP = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "17"}


@pytest.fixture
def sixth_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)


def composed(*overrides: str):
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose("train", ["model=vgg_mini", "data=digits", "strategy=scratch", *overrides])


def test_a_task_knows_its_place(sixth_of_eight: None) -> None:
    assert slurm_tasks() == Tasks(rank=5, count=8, nodes=2, job="17")
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
