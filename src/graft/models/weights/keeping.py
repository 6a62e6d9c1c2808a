"""The head of a weight file in training: kept where its classes are those of the data, otherwise replaced."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from graft.errors import WeightsError, listed
from graft.models.heads import head_modules
from graft.models.layouts import belongs
from graft.models.weights.fitting import SHOWN

KEY = "model.keep_head"
NAMED = 10
"""Largest number of classes whose names are in the note about an unused head."""


def require_same_head(
    network: nn.Module, source: str, loaded: Collection[str], known: Sequence[str] | None, classes: Sequence[str]
) -> None:
    """Refuse weights whose head is not of `classes` in this order.

    Args:
        network: that the weights are for.
        source: of the weights, for messages.
        loaded: names of the tensors that are loaded.
        known: names of the classes of the weights; None where they are unknown.
        classes: of the data set.

    Raises:
        WeightsError: the classes are unknown, others or in another order, or the head does not fit the network.
    """
    if known is None:
        raise WeightsError(
            f"{KEY}=true: {source} does not name the classes of its head.\nName them in its order, model.classes=[…], "
            f"or set {KEY}=false for a new head."
        )
    if tuple(known) != tuple(classes):
        raise WeightsError(
            f"{KEY}=true: the head of {source} has other classes than the data: "
            f"{difference(known, classes, 'the weights', 'the data')}.\n"
            f"Set {KEY}=false for a new head; model.head_from={{CLASS: CLASS_OF_THE_WEIGHTS}} initialises rows by name."
        )
    head = head_modules(network)
    if missing := [key for key in network.state_dict() if belongs(key, head) and key not in loaded]:
        raise WeightsError(
            f"{KEY}=true: {source} has no {', '.join(missing)} that fits this network.\nSet {KEY}=false for a new head."
        )


def describe_unused_head(
    network: nn.Module,
    source: str,
    tensors: Mapping[str, Tensor],
    known: Sequence[str] | None,
    classes: Sequence[str],
) -> list[str]:
    """A sentence for the user if a weight file has a head that is not loaded.

    Args:
        network: that the weights are for.
        source: of the weights.
        tensors: of the weights, under the network's names.
        known: names of the classes of the weights; None where they are unknown.
        classes: of the data set.
    """
    head = head_modules(network)
    rows = next((len(value) for key, value in tensors.items() if belongs(key, head[:1]) and value.ndim), None)
    if rows is None:
        return []
    named = "" if known is None or len(known) > NAMED else f": {', '.join(known)}"
    same = known is not None and tuple(known) == tuple(classes)
    way = f" They are the classes of the data: {KEY}=true keeps it." if same else ""
    return [f"The head of {source} ({rows:,} classes{named}) is not loaded; a new one is initialised.{way}"]


def difference(first: Sequence[str], second: Sequence[str], one: str, other: str) -> str:
    """How two lists of class names differ, e.g. "class 0 is 'ants' in the weights and 'bees' in the data"."""
    if sorted(first) == sorted(second):
        index = next(index for index, name in enumerate(first) if name != second[index])
        pair = f"class {index} is {first[index]!r} in {one}, {second[index]!r} in {other}"
        return f"the same names in another order ({pair})"
    if len(first) != len(second):
        return f"{len(first):,} in {one} ({listed(first, SHOWN)}), {len(second):,} in {other} ({listed(second, SHOWN)})"
    only, others = [name for name in first if name not in second], [name for name in second if name not in first]
    return f"{listed(only, SHOWN)} only in {one}, {listed(others, SHOWN)} only in {other}"
