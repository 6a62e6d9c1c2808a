"""Weights that return to their average."""

import copy

import pytest
import torch
from graft.learning.lookahead import Lookahead
from torch import Tensor, nn


class Parabola(nn.Module):
    """Its value is half the square of its weight."""

    def __init__(self, *start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        return (self.weight**2).sum() / 2


def descend(steps: int, every: int | None) -> list[float]:
    """A parabola by plain gradient steps, with Lookahead; the weight after each step."""
    parabola = Parabola(1.0)
    optimizer = torch.optim.SGD(parabola.parameters(), lr=0.4)
    lookahead = Lookahead(parabola, every, steps) if every else None
    path = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        parabola().backward()
        optimizer.step()
        if lookahead:
            lookahead.after_step(step)
        path.append(parabola.weight.item())
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


def test_the_statistics_of_batch_norm_return_with_the_weights() -> None:
    """Else the weights of the average would meet what BatchNorm has seen of those that went ahead."""
    norm = nn.BatchNorm1d(1, momentum=1.0)
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    lookahead = Lookahead(norm, every=1, steps=2)
    slow = 0.0
    for step, mean in ((1, 2.0), (2, 6.0)):
        norm(torch.tensor([[mean - 1], [mean + 1]])).sum().backward()
        optimizer.step()
        lookahead.after_step(step)
        kept = 0.95 * (step / 2) ** 3
        slow = mean if step == 1 else kept * slow + (1 - kept) * mean
        assert norm.running_mean is not None
        assert norm.running_mean.item() == pytest.approx(slow)
    assert norm.num_batches_tracked == 2


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_what_has_not_trained_yet_stays_to_the_bit_and_may_begin_later(kind: type[torch.optim.Optimizer]) -> None:
    network = nn.ModuleDict({"moving": nn.Linear(5, 1), "still": nn.BatchNorm1d(5), "later": nn.Linear(5, 1)})
    network["still"].eval()
    for parameter in network["still"].parameters():
        parameter.requires_grad = False
    before = copy.deepcopy(network.state_dict())
    optimizer = kind(network.parameters(), lr=0.1, weight_decay=0.1)  # type: ignore[call-arg]
    lookahead = Lookahead(network, 2, 8)
    for step in range(1, 9):
        seen = network["still"](torch.randn(3, 5))
        (network["moving"](seen).sum() + (network["later"](seen).sum() if step > 4 else 0)).backward()
        optimizer.step()
        lookahead.after_step(step)
        optimizer.zero_grad()
        after = network.state_dict()
        moved = {name.split(".")[0] for name in before if not torch.equal(after[name], before[name])}
        assert moved == ({"moving", "later"} if step > 4 else {"moving"})


def test_a_step_that_was_left_out_changes_nothing() -> None:
    parabola = Parabola(1.0)
    lookahead = Lookahead(parabola, every=1, steps=8)
    lookahead.after_step(1)
    assert parabola.weight == 1
    assert not lookahead.averages


def test_its_averages_are_enough_to_go_on() -> None:
    """Stopped after the fourth of eight steps and taken up, it ends where it would have ended."""
    parabolas = [Parabola(1.0, -2.0) for _ in range(2)]
    optimizers = [torch.optim.SGD(parabola.parameters(), lr=0.3, momentum=0.9) for parabola in parabolas]

    def go(which: int, lookahead: Lookahead, first: int, last: int) -> None:
        for step in range(first, last + 1):
            optimizers[which].zero_grad()
            parabolas[which]().backward()
            optimizers[which].step()
            lookahead.after_step(step)

    straight = Lookahead(parabolas[0], 3, 8)
    go(0, straight, 1, 4)
    parabolas[1].load_state_dict(parabolas[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    taken_up = Lookahead(parabolas[1], 3, 8, copy.deepcopy(straight.averages))
    go(0, straight, 5, 8)
    go(1, taken_up, 5, 8)
    assert torch.equal(parabolas[0].weight, parabolas[1].weight)
