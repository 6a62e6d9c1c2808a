"""Weights that return to their average."""

import copy

import pytest
import torch

from graft.learning.lookahead import Lookahead


def descend(steps: int, every: int | None) -> list[float]:
    """A parabola by plain gradient steps, with Lookahead; the weight after each step."""
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=0.4)
    lookahead = Lookahead(every, steps) if every else None
    path = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (weight**2 / 2).sum().backward()
        optimizer.step()
        if lookahead:
            lookahead.after_step(optimizer, step)
        path.append(weight.item())
    return path


def test_it_is_the_source_s_formula() -> None:
    fast, slow, expected = 1.0, None, []
    for step in range(1, 12):
        fast -= 0.4 * fast
        if step % 3 == 0 or step == 11:
            slow = fast if slow is None else slow
            kept = 0.95**3 * (step / 11) ** 3
            fast = slow = kept * slow + (1 - kept) * fast
        expected.append(fast)
    assert descend(11, every=3) == pytest.approx(expected, rel=1e-5)
    assert descend(11, every=None)[-1] != pytest.approx(expected[-1], rel=1e-2)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_what_has_not_trained_yet_stays_to_the_bit_and_may_begin_later(kind: type[torch.optim.Optimizer]) -> None:
    moving, still = (torch.nn.Parameter(torch.randn(5)) for _ in range(2))
    before = still.clone()
    optimizer = kind([moving, still], lr=0.1, weight_decay=0.1)  # type: ignore[call-arg]
    for step in range(1, 9):
        (moving.sum() + (still.sum() if step > 4 else 0)).backward()
        optimizer.step()
        Lookahead(2, 8).after_step(optimizer, step)
        optimizer.zero_grad()
        if step == 4:
            assert torch.equal(still, before)
            assert still not in optimizer.state
    assert not torch.equal(still, before)


def test_its_averages_travel_with_the_optimizer() -> None:
    """Stopped after the fourth of eight steps and taken up, it ends where it would have ended."""
    weights = [torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    optimizers = [torch.optim.SGD([weight], lr=0.3, momentum=0.9) for weight in weights]

    def go(which: int, first: int, last: int) -> None:
        for step in range(first, last + 1):
            optimizers[which].zero_grad()
            (weights[which] ** 2).sum().backward()
            optimizers[which].step()
            Lookahead(3, 8).after_step(optimizers[which], step)

    go(0, 1, 4)
    with torch.no_grad():
        weights[1].copy_(weights[0])
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    go(0, 5, 8)
    go(1, 5, 8)
    assert torch.equal(weights[0], weights[1])
