"""Random numbers are a function of seed and purpose."""

import torch

from graft.seeding import seed_device, seed_of, seeded


def test_a_device_is_seeded_as_torch_seeds_all_of_them() -> None:
    seed_device(torch.device("cpu"), 3, "step", 7)
    ours = torch.rand(5)
    torch.manual_seed(seed_of(3, "step", 7))
    assert torch.equal(ours, torch.rand(5))
    seed_device(torch.device("cpu"), 3, "step", 8)
    assert not torch.equal(ours, torch.rand(5))


def test_generators_outside_of_the_block_continue_unchanged() -> None:
    torch.manual_seed(0)
    undisturbed = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(1)
    with seeded("something", 1):
        inside = torch.rand(1)
    assert torch.equal(torch.cat([first, torch.rand(1)]), undisturbed)
    with seeded("something", 1):
        assert torch.equal(torch.rand(1), inside)
