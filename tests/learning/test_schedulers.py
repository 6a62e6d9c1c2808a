"""Learning-rate schedules over the length of a run."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import TINY

import graft
from graft.config.registration import typed
from graft.config.schema import SchedulerConfig, TrainConfig
from graft.errors import ConfigError
from graft.learning.schedulers import Length, build_schedule, cosine_with_warmup


def scheduler(*overrides: str) -> SchedulerConfig:
    return typed(graft.compose(*overrides).config, TrainConfig).scheduler


def rates(config: SchedulerConfig, steps: int, per_epoch: int) -> list[list[float]]:
    """Learning rate of both groups before every optimizer step."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(
        [{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.1, 1.0), strict=True)], momentum=0.9
    )
    schedule = build_schedule(optimizer, config, Length(steps, per_epoch))
    found = []
    for step in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if schedule and (schedule["interval"] == "step" or (step + 1) % per_epoch == 0):
            schedule["scheduler"].step()
    return found


def test_cosine_warms_up_linearly_and_ends_at_the_floor() -> None:
    config = scheduler("scheduler=cosine", "scheduler.warmup_epochs=1", "scheduler.min_lr_ratio=0.1")
    found = [pair[1] for pair in rates(config, steps=40, per_epoch=4)]
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in pairwise(found[4:]))
    assert cosine_with_warmup(40, warmup=4, total=40, floor=0.1) == pytest.approx(0.1)
    assert cosine_with_warmup(22, warmup=4, total=40, floor=0.0) == pytest.approx(0.5)


def test_a_warmup_longer_than_half_of_the_run_is_cut_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = [pair[1] for pair in rates(scheduler("scheduler=cosine", "scheduler.warmup_epochs=2"), 12, per_epoch=6)]
    assert found.index(1.0) == 6
    assert "scheduler.warmup_epochs=2: 12 steps, more than half of the run's 12; the warm-up takes 6" in caplog.text


@pytest.mark.parametrize("epochs", [10, -1])
def test_with_max_steps_an_epoch_of_warmup_has_the_steps_of_an_epoch(epochs: int, tmp_path: Path) -> None:
    overrides = (
        *TINY, "trainer.limit_train_batches=4", f"trainer.max_epochs={epochs}", "trainer.max_steps=8",
        "scheduler=cosine", "scheduler.warmup_epochs=1", "trainer.log_every_n_steps=1", "trainer.baseline=false",
        "trainer.test=false", "logger.tensorboard=false", "callbacks.progress=none",
    )  # fmt: skip
    run = graft.train(*overrides, folder=tmp_path, echo=False)
    steps, found = run.curve("lr/head")
    highest = max(found)
    assert [rate / highest for rate in found[:5]] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]), steps


def test_every_group_keeps_its_ratio() -> None:
    for config in (
        scheduler("scheduler=cosine", "scheduler.warmup_epochs=0.5"),
        scheduler("scheduler=onecycle"),
        scheduler("scheduler=step", "scheduler.step_size=2", "scheduler.gamma=0.5"),
    ):
        for low, high in rates(config, steps=12, per_epoch=3):
            assert low == pytest.approx(high / 10)


def test_step_counts_epochs() -> None:
    config = scheduler("scheduler=step", "scheduler.step_size=2", "scheduler.gamma=0.5")
    assert [pair[1] for pair in rates(config, steps=12, per_epoch=3)] == [1.0] * 6 + [0.5] * 6


def test_onecycle_peaks_at_the_learning_rate() -> None:
    found = [pair[1] for pair in rates(scheduler("scheduler=onecycle"), steps=100, per_epoch=10)]
    assert found[0] == pytest.approx(1 / 25)
    assert max(found) == pytest.approx(1.0, rel=1e-2)
    assert found[-1] < 1e-2


def test_a_linear_cycle_is_a_triangle_and_can_leave_momentum_unchanged() -> None:
    linear = ("scheduler=onecycle", "scheduler.anneal_strategy=linear", "scheduler.div_factor=5")
    linear += ("scheduler.final_div_factor=2",)
    found = [pair[1] for pair in rates(scheduler(*linear), steps=100, per_epoch=10)]
    rises = [later - earlier for earlier, later in pairwise(found[:30])]
    assert rises == pytest.approx([rises[0]] * 29)
    assert (found[0], min(found), found[-1]) == pytest.approx((0.2, 0.1, 0.1), abs=0.02)
    for cycles in (True, False):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0, momentum=0.8)
        build_schedule(optimizer, scheduler(*linear, f"scheduler.cycle_momentum={cycles}"), Length(100, 10))
        assert (optimizer.param_groups[0]["momentum"] == 0.8) is not cycles


def test_without_a_scheduler_the_rate_is_constant() -> None:
    assert rates(scheduler("scheduler=none"), 3, 1) == [[0.1, 1.0]] * 3


def test_a_target_that_is_not_a_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="gives a nullcontext, not an LRScheduler"):
        rates(scheduler("scheduler._target_=contextlib.nullcontext"), 3, 1)


@pytest.mark.parametrize(("pct_start", "steps"), [(0.25, 3), (0.1, 9), (0.5, 1), (1 / 3, 2), (1.0, 5)])
def test_onecycle_with_a_warmup_of_one_step_has_a_finite_rate(pct_start: float, steps: int) -> None:
    config = scheduler("scheduler=onecycle")
    vars(config)["pct_start"] = pct_start
    found = [pair[1] for pair in rates(config, steps, steps)]
    assert all(0 < rate <= 1 for rate in found)
    assert found[0] == pytest.approx(1 / 25)
