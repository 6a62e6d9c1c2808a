"""Chance as a pure function: the same parts give the same seed, on every machine and in every process."""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2**63) from e.g. (run seed, "step", epoch, step); different parts give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_device(device: "torch.device", *parts: int | str) -> None:
    """Seed what draws on `device`, and on the CPU, from `parts`, as `torch.manual_seed` does for every kind of device
    there is; for those not in use, that function takes down the call stack each time, for up to a millisecond."""
    import torch

    seed = seed_of(*parts)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Inside, torch's CPU generator is seeded from `parts`; outside, it goes on as if nothing had happened.

    That generator alone: `torch.manual_seed` would seed the GPUs' too.
    """
    import torch  # only here: a sweeper, which trains nothing, draws seeds too

    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(*parts))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@contextlib.contextmanager
def seeded_everywhere(*parts: int | str) -> Iterator[None]:
    """Seed the global CPU generators of torch, NumPy and Python from `parts`; after the block they continue as if
    nothing had been drawn. For user code, which may draw from any of them.
    """
    import numpy as np

    python, legacy = random.getstate(), np.random.get_state()
    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with seeded(*parts):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
