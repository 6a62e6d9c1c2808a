"""Seeds as a pure function of their purpose: the same parts give the same seed on every machine, in every process."""

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*parts: int | str) -> int:
    """Seed in [0, 2**63) derived from e.g. (run seed, "step", epoch, step); different parts give independent seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_device(device: "torch.device", *parts: int | str) -> None:
    """Seed the generators of `device` and of the CPU from `parts`.

    `torch.manual_seed` seeds the generators of every kind of device; for kinds that are not in use it records the call
    stack each time, which takes up to a millisecond.
    """
    import torch

    seed = seed_of(*parts)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextlib.contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed torch's CPU generator from `parts` in the block and restore its state afterwards.

    Generators of GPUs are not changed, as they would be by `torch.manual_seed`.
    """
    import torch  # imported late: a sweeper, which trains nothing, needs seeds too

    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed_of(*parts))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@contextlib.contextmanager
def seeded_everywhere(*parts: int | str) -> Iterator[None]:
    """Seed the global CPU generators of torch, NumPy and Python from `parts` in the block and restore them afterwards.

    For user code, which may use any of them.
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
