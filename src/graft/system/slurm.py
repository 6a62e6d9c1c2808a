"""Rank and number of the tasks that Slurm's srun has started."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tasks:
    """This Slurm task and the other tasks of its step.

    Attributes:
        rank: index of this task, from 0.
        count: number of tasks.
        nodes: number of machines that they run on.
        step: JOB.STEP, as Slurm writes it; unchanged if the job is requeued.
    """

    rank: int
    count: int
    nodes: int
    step: str


def slurm_tasks(environment: Mapping[str, str] = os.environ) -> Tasks | None:
    """The tasks of the srun step that this process belongs to; None outside of srun."""
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
    """Whether this process writes the files of its run: the first Slurm task, or any process outside of Slurm."""
    tasks = slurm_tasks()
    return tasks is None or tasks.rank == 0
