"""Learning-rate schedules."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from graft.errors import ConfigError
from graft.learning.schedulers import Length, build_schedule, cosine_with_warmup

ONECYCLE = SimpleNamespace(
    name="onecycle", pct_start=0.3, div_factor=25, final_div_factor=1e4, anneal_strategy="cos", cycle_momentum=True
)


def rates(config: SimpleNamespace, steps: int, per_epoch: int) -> list[list[float]]:
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
    config = SimpleNamespace(name="cosine", warmup_epochs=1.0, min_lr_ratio=0.1)
    found = [pair[1] for pair in rates(config, steps=40, per_epoch=4)]
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later < earlier for earlier, later in pairwise(found[4:]))
    assert cosine_with_warmup(40, warmup=4, total=40, floor=0.1) == pytest.approx(0.1)
    assert cosine_with_warmup(22, warmup=4, total=40, floor=0.0) == pytest.approx(0.5)


def test_every_group_keeps_its_ratio() -> None:
    for config in (
        SimpleNamespace(name="cosine", warmup_epochs=0.5, min_lr_ratio=0.0),
        ONECYCLE,
        SimpleNamespace(name="step", step_size=2, gamma=0.5),
    ):
        for low, high in rates(config, steps=12, per_epoch=3):
            assert low == pytest.approx(high / 10)


def test_step_goes_by_epochs() -> None:
    config = SimpleNamespace(name="step", step_size=2, gamma=0.5)
    assert [pair[1] for pair in rates(config, steps=12, per_epoch=3)] == [1.0] * 6 + [0.5] * 6


def test_onecycle_peaks_at_the_learning_rate() -> None:
    config = ONECYCLE
    found = [pair[1] for pair in rates(config, steps=100, per_epoch=10)]
    assert found[0] == pytest.approx(1 / 25)
    assert max(found) == pytest.approx(1.0, rel=1e-2)
    assert found[-1] < 1e-2


def test_a_linear_cycle_is_a_triangle_and_can_leave_momentum_alone() -> None:
    config = SimpleNamespace(**{**vars(ONECYCLE), "anneal_strategy": "linear", "div_factor": 5, "final_div_factor": 2})
    found = [pair[1] for pair in rates(config, steps=100, per_epoch=10)]
    rises = [later - earlier for earlier, later in pairwise(found[:30])]
    assert rises == pytest.approx([rises[0]] * 29)
    assert (found[0], min(found), found[-1]) == pytest.approx((0.2, 0.1, 0.1), abs=0.02)
    for cycles in (True, False):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0, momentum=0.8)
        config.cycle_momentum = cycles
        build_schedule(optimizer, config, Length(100, 10))
        assert (optimizer.param_groups[0]["momentum"] == 0.8) is not cycles


def test_none_is_none_and_unknown_is_said() -> None:
    assert rates(SimpleNamespace(name="none"), 3, 1) == [[0.1, 1.0]] * 3
    with pytest.raises(ConfigError, match="cosine"):
        rates(SimpleNamespace(name="cosin"), 3, 1)


@pytest.mark.parametrize(("pct_start", "steps"), [(0.25, 3), (0.1, 9), (0.5, 1), (1 / 3, 2), (1.0, 5)])
def test_onecycle_with_a_warmup_of_one_step_has_a_finite_rate(pct_start: float, steps: int) -> None:
    found = [pair[1] for pair in rates(SimpleNamespace(**{**vars(ONECYCLE), "pct_start": pct_start}), steps, steps)]
    assert all(0 < rate <= 1 for rate in found)
    assert found[0] == pytest.approx(1 / 25)
