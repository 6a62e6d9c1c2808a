"""Stages of a network: named parts, from input to output, and the rules that find them. Imports no torch."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

HEAD = "head"
CLASSIFIER = "classifier"
FEATURES = "features"
AUXILIARY = "aux"


def belongs(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter's or module's `name` is one of `modules` or is inside one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


@dataclass(frozen=True)
class Stage:
    """A part of a network that is frozen, unfrozen and given a learning rate as a whole.

    Attributes:
        name: unique in the network, e.g. "block3".
        group: several stages may share one, e.g. "features"; learning rates are set per group.
        modules: names of its modules (or of single parameters), each with everything inside.
    """

    name: str
    group: str
    modules: tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Whether the parameter or module called `name` is in this stage."""
        return belongs(name, self.modules)


Layout = Callable[["nn.Module", tuple[str, ...]], list[Stage]]
"""Finds the stages of a network with this head, from input to output."""


def rows(*stages: tuple[str, tuple[str, ...]]) -> Layout:
    """The layout that names each stage, which is a separate group, and its modules."""
    return lambda network, head: [Stage(name, name, modules) for name, modules in stages]


def prefixed(prefix: str, *names: str) -> tuple[str, ...]:
    """`names`, each after `prefix`."""
    return tuple(prefix + name for name in names)


def cut_into_stages(
    network: "nn.Module", head: Sequence[str], names: Sequence[str], trunk: Mapping[str, str]
) -> list[Stage]:
    """Stages of the modules (or single parameters) `names`.

    A module without parameters goes with its predecessor in the same container, else with its successor.

    Args:
        network: whose modules.
        head: names of the modules that compute the logits.
        names: from input to output.
        trunk: name -> stage, a separate group. The modules of the head become the last stage, `head`; every other
            module becomes a stage of the group `classifier`.
    """
    parameters = [name for name, _ in network.named_parameters()]
    parts: dict[tuple[str, str], list[str]] = {}
    last: list[str] = []
    pending: list[str] = []
    for name in names:
        inside = [parameter for parameter in parameters if belongs(parameter, (name,))]
        if not inside:
            follows = last and last[-1].rpartition(".")[0] == name.rpartition(".")[0]
            (last if follows else pending).append(name)
            continue
        title = trunk.get(name, name)
        title = f"trunk.{title}" if title in (HEAD, CLASSIFIER, AUXILIARY) else title  # a module may have this name
        key = (title, title if name in trunk else CLASSIFIER)
        last = parts.setdefault((HEAD, HEAD) if belongs(inside[0], head) else key, [])
        last += [name, *pending]
        pending = []
    parts[HEAD, HEAD] = parts.pop((HEAD, HEAD))
    return [Stage(name, group, tuple(part)) for (name, group), part in parts.items()]


def children_of(network: "nn.Module", container: str) -> list[str]:
    """Names of the modules directly in the module `container`."""
    return [f"{container}.{name}" for name, _ in network.get_submodule(container).named_children()]


def by_max_pool(network: "nn.Module", head: tuple[str, ...]) -> list[Stage]:
    """VGG, AlexNet, SqueezeNet: `features` split after each max-pool (block1, ...), then the classifier."""
    from torch import nn

    blocks: list[list[str]] = [[]]
    for name, layer in network.get_submodule(FEATURES).named_children():
        blocks[-1].append(f"{FEATURES}.{name}")
        if isinstance(layer, nn.MaxPool2d):
            blocks.append([])
    above = [name for name, module in network.named_children() if name != FEATURES and [*module.parameters()]]
    layers = [part for name in above for part in children_of(network, name) or [name]]
    return [
        *(Stage(f"block{i}", FEATURES, tuple(block)) for i, block in enumerate(filter(None, blocks), start=1)),
        *cut_into_stages(network, head, layers, {}),
    ]


def generic(network: "nn.Module", head: tuple[str, ...]) -> list[Stage]:
    """Any network: its children, each opened while it contains the head or more than half of the trunk."""
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    half = sum(size for name, size in sizes.items() if not belongs(name, head)) / 2

    def opened(name: str) -> list[str]:
        if name in sizes or belongs(name, head) or not any(True for _ in network.get_submodule(name).children()):
            return [name]
        hides = any(belongs(module, (name,)) for module in head)
        heavy = sum(size for parameter, size in sizes.items() if belongs(parameter, (name,))) > half
        return [part for child in members(network, name) for part in opened(child)] if hides or heavy else [name]

    beside_head = head[0].rpartition(".")[0]
    names = [part for child in members(network, "") for part in opened(child)]
    trunk: dict[str, str] = {}
    following = ""
    for name in reversed(names):
        if not (beside_head and belongs(name, (beside_head,))):  # tokens and positions go with the module they precede
            following = trunk[name] = following if name in sizes and following else name
    return cut_into_stages(network, head, names, trunk)


def members(network: "nn.Module", prefix: str) -> list[str]:
    """Names of the parameters and modules directly in the module `prefix`."""
    module = network.get_submodule(prefix)
    names = [name for name, _ in module.named_parameters(recurse=False)]
    names += [name for name, _ in module.named_children()]
    return [f"{prefix}.{name}" if prefix else name for name in names]


def uniform_parts(network: "nn.Module", prefix: str, key_of: Callable[[str], Hashable]) -> Iterator[str]:
    """The largest modules (or single parameters) in `prefix` whose parameters all have the same key, in order."""
    for name in members(network, prefix):
        parameters = [parameter for parameter, _ in network.named_parameters() if belongs(parameter, (name,))]
        if len({key_of(parameter) for parameter in parameters}) > 1:
            yield from uniform_parts(network, name, key_of)
        else:
            yield name
