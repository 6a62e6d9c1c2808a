"""Gradient norms: a known answer, at the logged steps."""

import pytest
import torch
from torch import nn

from graft.learning.callbacks.step_statistics import gradient_norms


def test_gradient_norms_cover_each_group_and_are_zero_for_frozen_ones() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(2, 1)
    groups = [
        {"name": "features", "params": list(first.parameters())},
        {"name": "head", "params": list(second.parameters())},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    second.weight.grad = torch.tensor([[3.0, 0.0]])
    second.bias.grad = torch.tensor([4.0])
    assert gradient_norms(optimizer) == {"grad_norm/features": 0.0, "grad_norm/head": 5.0}
    assert gradient_norms(optimizer, scale=2.0)["grad_norm/head"] == 2.5
    first.weight.grad = torch.full((2, 3), 1e-3)
    assert gradient_norms(optimizer)["grad_norm/features"] == pytest.approx(1e-3 * 6**0.5)
