"""What Slurm says to the tasks that srun has started."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tasks:
    """This task among those of its step.

    Attributes:
        rank: of this task, from 0.
        count: how many tasks there are.
        nodes: on how many machines they are.
        step: the step as Slurm writes it, JOB.STEP; the same when the job is queued again.
    """

    rank: int
    count: int
    nodes: int
    step: str


def slurm_tasks(environment: Mapping[str, str] = os.environ) -> Tasks | None:
    """The tasks of the step of srun that this process belongs to; None outside of one."""
    try:
        return Tasks(
            rank=int(environment["SLURM_PROCID"]),
            count=int(environment["SLURM_STEP_NUM_TASKS"]),
            nodes=int(environment["SLURM_STEP_NUM_NODES"]),
            step=f"{environment['SLURM_JOB_ID']}.{environment['SLURM_STEP_ID']}",
        )
    except (KeyError, ValueError):
        return None


def first_task() -> bool:
    """Is this the one process of its run that writes? True outside of Slurm."""
    tasks = slurm_tasks()
    return tasks is None or tasks.rank == 0
