"""A new head initialised from the pretrained one: rows of its classes, under the names of new ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from graft.errors import ConfigError, nearest
from graft.models.heads import head_modules
from graft.models.layouts import belongs

KEY = "model.head_from"


def graft_head(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    known: Sequence[str] | None,
    classes: Sequence[str],
    origins: Mapping[str, Sequence[str]],
) -> dict[str, Tensor]:
    """The head's tensors: each row named in `origins` is the mean of pretrained rows, the others stay random.

    A class of the data set that is among the pretrained ones, as ants and bees are among ImageNet's, is then
    predicted before the first step.

    Args:
        network: with its new head of C classes; not changed.
        tensors: of the weight file, under the network's names.
        known: names of the classes of the file's head; None where they are unknown.
        classes: the C classes of the data set.
        origins: class → one or several of `known`, as from `origins_by_name`.

    Raises:
        ConfigError: a name that the data set or the weights do not have (names the nearest), or weights without a head
            or with another kind of head.
    """
    expected = network.state_dict()
    keys = [key for key in expected if belongs(key, head_modules(network))]
    if known is None or any(key not in tensors or len(tensors[key]) != len(known) for key in keys):
        raise ConfigError(f"{KEY}: the weights have no head with class names. Set {KEY}=null.")
    if any(tensors[key].shape[1:] != expected[key].shape[1:] for key in keys):
        raise ConfigError(f"{KEY}: the head of the weights is of another shape than this network's.")
    rows = {_class_index(name, classes): _rows(name, origin, known) for name, origin in origins.items()}
    grafted = {key: expected[key].clone() for key in keys}
    for key, tensor in grafted.items():
        for row, origin in rows.items():
            tensor[row] = tensors[key][origin].to(tensor.dtype).mean(0)
    return grafted


def origins_by_name(head_from: Mapping[Any, Any]) -> dict[str, list[str]]:
    """model.head_from with lists of names as values; classes called 1 and 2 are numbers in YAML."""
    return {
        str(name): [str(each) for each in (origin if isinstance(origin, list | tuple) else [origin])]
        for name, origin in head_from.items()
    }


def describe_origins(classes: Sequence[str], origins: Mapping[str, Sequence[str]]) -> str:
    """A sentence for the user about the classes that were initialised."""
    pairs = [f"{name} from {' and '.join(origin)}" for name, origin in origins.items()]
    rest = len(classes) - len(origins)
    random = f"; {rest} of {len(classes)} classes start randomly initialised" if rest else ""
    return f"The head is initialised from the weights: {', '.join(pairs)}{random}."


def _class_index(name: str, classes: Sequence[str]) -> int:
    if name not in classes:
        raise ConfigError(f"{KEY}.{name}: the data set has no class of this name.{nearest(name, classes)}")
    return list(classes).index(name)


def _rows(name: str, origins: Sequence[str], known: Sequence[str]) -> list[int]:
    if not origins:
        raise ConfigError(f"{KEY}.{name}: must name at least one class of the weights.")
    rows = [index for index, old in enumerate(known) if old in origins]
    for old in origins:
        if old not in known:
            raise ConfigError(f"{KEY}.{name}={old}: the weights have no class of this name.{nearest(old, known)}")
    return rows
