"""Chance as a pure function: the same parts give the same seed, on every machine and in every process."""

import contextlib
import hashlib
from collections.abc import Iterator


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2**63) from e.g. (run seed, "step", epoch, step); different parts give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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
