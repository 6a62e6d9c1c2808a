"""A freeze policy: the stages take turns."""

from collections.abc import Sequence

from graft.transfer import Stage
from graft.transfer.freeze import in_stages


def every_other(stages: Sequence[Stage], names: Sequence[str], epoch: int, period: int = 2) -> frozenset[str]:
    """Train every `period`-th stage in an epoch and freeze the others; the head always trains.

    Epoch 0 trains the stages 0, `period`, …, counted from the output; epoch 1 their neighbours; and so on. A block-wise
    schedule: with `period=2` an epoch computes gradients for about half of the trunk, and all of it trains in two.

    A policy is a pure function. It may depend on these arguments only, so that a resumed run freezes what an
    uninterrupted one would.

    Args:
        stages: of the network, from input to output.
        names: of all parameters.
        epoch: counted from 0.
        period: number of epochs in which each stage trains once.

    Returns:
        The names of the parameters that are frozen in `epoch`.

    Raises:
        ValueError: `period` is below 1.
    """
    if period < 1:
        raise ValueError(f"period={period}: must be at least 1 epoch")
    trunk = [stage for stage in reversed(stages) if stage.group != "head"]
    return in_stages(names, [stage for number, stage in enumerate(trunk) if (number - epoch) % period])
