"""Cuts a network into a frozen, deterministic prefix, whose output can be stored, and the rest."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

from graft.system.compat import tree_leaves

GENERATORS: dict[str, Callable[[torch.device], Tensor]] = {
    "cuda": torch.cuda.get_rng_state,
    "mps": lambda device: torch.mps.get_rng_state(),
}
"""Type of device -> the state of its random generator."""

IDENTITIES = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
"""Layers that pass their input on, when they are inactive."""


class NoCut(Exception):
    """The network has no such prefix; the message is the reason."""


@dataclass(frozen=True)
class Cut:
    """A network as two functions that share its modules, so that `suffix(net, *prefix(net, x))` is `net(x)` to the bit.

    Attributes:
        name: the modules whose outputs are at the cut, e.g. "classifier.5" or "Mixed_6e + avgpool/flatten".
        prefix: (network, images) -> the tensors at the cut, each [B, ...]: a function of the image alone.
        suffix: (network, *those tensors) -> what the network returns.
        examples: tensors like those at the cut, for a batch of two, on the meta device: shapes, types, strides.
        graph: of the prefix.
    """

    name: str
    prefix: Callable[..., tuple[Tensor, ...]]
    suffix: Callable[..., Any]
    examples: tuple[Tensor, ...]
    graph: fx.Graph

    @property
    def code(self) -> str:
        """The source code of the prefix, without that of its layers."""
        return self.graph.python_code("self").src

    def fingerprint(self, network: nn.Module) -> str:
        """SHA-256 (hex) of everything that the prefix computes with: its code, layers, parameters and buffers."""
        return _fingerprint(network, self.graph)


@dataclass(frozen=True)
class Taps:
    """The pooled outputs of a network at several depths, computed in one forward pass.

    Attributes:
        depths: index of each depth among those that were requested, ascending.
        names: modules whose outputs are pooled at each depth, as `Cut.name`.
        compute: (network, images) -> the pooled output [B, D] at each depth, float32, then the tensors at the deepest.
        examples: the pooled outputs for a batch of two, on the meta device.
        graph: of the pass.
    """

    depths: tuple[int, ...]
    names: tuple[str, ...]
    compute: Callable[..., tuple[Tensor, ...]]
    examples: tuple[Tensor, ...]
    graph: fx.Graph

    def fingerprint(self, network: nn.Module) -> str:
        """SHA-256 (hex) of everything that the pass computes with, as `Cut.fingerprint`."""
        return _fingerprint(network, self.graph)


def pooled(*outputs: Tensor) -> Tensor:
    """The means of maps [B, C, H, W] over their positions and of tokens [B, T, D] over the tokens, side by side:
    float32 [B, D]. Vectors [B, D] are unchanged."""
    vectors = []
    for output in outputs:
        output = output.float()
        if output.dim() == 4:
            channels_last = output.shape[1] == output.shape[2] != output.shape[3]  # as Swin's maps, [B, H, W, C]
            output = output.mean((1, 2) if channels_last else (2, 3))
        vectors.append(output.mean(1) if output.dim() == 3 else output.flatten(1))
    return torch.cat(vectors, 1)


def find_cut(network: nn.Module, frozen: Collection[str], images: Tensor) -> Cut:
    """The deepest cut before which every step is frozen and deterministic.

    The network's forward is traced (torch.fx) in the mode that each module is in now. A step is frozen when
    its inputs are, its parameters are in `frozen`, and its buffers, if any, are those of a module in
    evaluation mode. Whether it is random is found by running it and comparing the states of the generators, so an
    active Dropout is after the cut and an inactive one may be before it. The cut may go through several
    tensors, as for Inception's two heads.

    Args:
        network: in the modes in which it will be used; not changed.
        frozen: names of the parameters that do not change.
        images: two images [2, 3, H, W], normalised, on the network's device.

    Raises:
        NoCut: a trained layer comes first, or the forward cannot be traced or cut exactly.
    """
    graph = _traced(network)
    _, output = _ends(graph)
    with torch.no_grad(), _generators_kept(images.device):
        values = _frozen_values(network, graph, frozen, images)
        stored, prefix = _deepest(network, graph, values, len(images))
        cut = Cut(
            name=" + ".join(_title(node) for node in stored),
            prefix=_function(network, prefix),
            suffix=_function(network, _part(graph, stored, output.args[0])),
            examples=tuple(values[node].to("meta") for node in stored),
            graph=prefix,
        )
        _check(network, cut, images, tuple(values[node] for node in stored))
    return cut


def find_taps(network: nn.Module, frozen: Sequence[Collection[str]], images: Tensor) -> Taps:
    """The cuts of `find_cut` for several sets of frozen parameters, pooled, as one pass.

    Depths at which the network cannot be cut, or is cut as at the next, are left out.

    Args:
        network: in the modes in which it will be used; not changed.
        frozen: names of the frozen parameters, from the fewest to the most; the last has a cut.
        images: as for `find_cut`.

    Raises:
        NoCut: there is none at the last depth.
    """
    graph = _traced(network)
    images_node, _ = _ends(graph)
    depths: dict[tuple[fx.Node, ...], int] = {}
    with torch.no_grad(), _generators_kept(images.device):
        for number, names in enumerate(frozen):
            try:
                stored, _ = _deepest(network, graph, _frozen_values(network, graph, names, images), len(images))
            except NoCut:
                if number + 1 == len(frozen):
                    raise
            else:
                depths[tuple(stored)] = number
        nodes = list(graph.nodes)
        vectors = []
        for tapped in depths:
            with graph.inserting_after(max(tapped, key=nodes.index)):  # at once: a later layer may work in place
                vectors.append(graph.call_function(pooled, tapped))
        part = _part(graph, [images_node], (*vectors, *list(depths)[-1]))
        compute = _function(network, part)
        examples = compute(network, images.clone())[: len(vectors)]
    return Taps(
        depths=tuple(depths.values()),
        names=tuple(" + ".join(_title(node) for node in tapped) for tapped in depths),
        compute=compute,
        examples=tuple(example.to("meta") for example in examples),
        graph=part,
    )


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math, torchvision.ops))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """A pool that reads the size of the map is not traced into: while tracing, nothing has a size."""
        return isinstance(m, nn.AdaptiveAvgPool2d) or super().is_leaf_module(m, module_qualified_name)


def _traced(network: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(network)
    except Exception as error:
        raise NoCut(f"its forward cannot be traced ({type(error).__name__})") from error


def _fingerprint(network: nn.Module, graph: fx.Graph) -> str:
    digest = hashlib.sha256(graph.python_code("self").src.encode())
    for node in graph.nodes:
        for name, tensor in _tensors_of(network, node).items():
            digest.update(f"\n{node.target} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if node.op == "call_module":
            digest.update(f"\n{node.target} {network.get_submodule(node.target)}".encode())
    return digest.hexdigest()


def _ends(graph: fx.Graph) -> tuple[fx.Node, fx.Node]:
    """(the node of the images, the node of the output)."""
    found = {node.op: node for node in reversed(graph.nodes)}
    return found["placeholder"], found["output"]


def _deepest(
    network: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any], count: int
) -> tuple[list[fx.Node], fx.Graph]:
    """(the nodes at the deepest cut, the graph that leads to them), given the values of the frozen steps."""
    images, output = _ends(graph)
    deepest = _stored_nodes(network, output, _storable(values, images, count))
    stored = list(dict.fromkeys(_without_effect(network, node, values) for node in deepest))
    prefix = _part(graph, [images], tuple(stored))
    if not any(_tensors_of(network, node) for node in prefix.nodes):
        raise NoCut("no frozen layer comes before the first that trains")
    return stored, prefix


def _frozen_values(network: nn.Module, graph: fx.Graph, frozen: Collection[str], images: Tensor) -> dict[fx.Node, Any]:
    """The frozen, deterministic steps with their values for `images`; no other step is run."""
    runner = fx.Interpreter(network, garbage_collect_values=False, graph=graph)
    runner.args_iter = iter([images.clone()])
    changing = {name for name, _ in network.named_parameters()}.difference(frozen)
    for path, module in network.named_modules():
        if module.training:
            changing.update(name for name, _ in module.named_buffers(path, recurse=False))
    for node in graph.nodes:
        known = runner.env.keys() >= set(node.all_input_nodes)
        if node.op == "output" or not known or changing.intersection(_tensors_of(network, node)):
            continue
        before = _generator_states(images.device)
        value = runner.run_node(node)
        if all(map(torch.equal, before, _generator_states(images.device))):
            runner.env[node] = value
    return runner.env


def _tensors_of(network: nn.Module, node: fx.Node) -> dict[str, Tensor]:
    """Parameters and buffers that a step uses, by name."""
    target = str(node.target)
    if node.op == "call_module":
        module = network.get_submodule(target)
        return {**dict(module.named_parameters(target)), **dict(module.named_buffers(target))}
    if node.op == "get_attr":
        path, _, name = target.rpartition(".")
        return {target: getattr(network.get_submodule(path), name)}
    return {}


def _storable(values: dict[fx.Node, Any], images: fx.Node, count: int) -> set[fx.Node]:
    """The steps whose value has one row for each of the `count` images."""
    of_images = {images}
    for node in values:
        if of_images.intersection(node.all_input_nodes):
            of_images.add(node)
    return {
        node
        for node in of_images - {images}
        if isinstance(value := values[node], Tensor) and value.dim() and len(value) == count
    }


def _stored_nodes(network: nn.Module, output: fx.Node, storable: Collection[fx.Node]) -> list[fx.Node]:
    """The deepest storable steps from which alone the output can be computed."""
    pending, above = [output], set[fx.Node]()
    stored = dict[fx.Node, None]()
    while pending:
        node = pending.pop()
        if node in storable:
            stored[node] = None
        elif node.op == "placeholder":
            raise NoCut("no frozen layer comes before the first that trains")
        elif node not in above:
            above.add(node)
            pending += node.all_input_nodes
    for node in list(stored):  # one that is, say, pooled from another need not be stored as well
        if _follows(network, node, stored.keys() - {node}):
            del stored[node]
    return [node for node in output.graph.nodes if node in stored]


def _follows(network: nn.Module, node: fx.Node, stored: Collection[fx.Node]) -> bool:
    """Whether `node` is computed from `stored` by steps without parameters."""
    inputs = node.all_input_nodes
    return (
        bool(inputs)
        and not _tensors_of(network, node)
        and all(source in stored or _follows(network, source, stored) for source in inputs)
    )


def _without_effect(network: nn.Module, node: fx.Node, values: dict[fx.Node, Any]) -> fx.Node:
    """The step before `node` and before all steps that do nothing, as an inactive Dropout.

    So training and evaluation, in which it is active and inactive, have the same cut and share features.
    """
    while len(node.all_input_nodes) == 1 and _is_identity(network, node):
        [source] = node.all_input_nodes
        if source.op == "placeholder" or not torch.equal(values[source], values[node]):
            break
        node = source
    return node


def _is_identity(network: nn.Module, node: fx.Node) -> bool:
    """Whether a step that draws no random numbers only passes its input on."""
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), IDENTITIES)
    return node.op == "call_function" and node.target is nn.functional.dropout


def _part(graph: fx.Graph, inputs: Sequence[fx.Node], result: Any) -> fx.Graph:
    """The steps of `graph` that lead from `inputs` to `result`, a structure of nodes."""
    needed = set[fx.Node]()
    pending = [leaf for leaf in tree_leaves(result) if isinstance(leaf, fx.Node)]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += [] if node in inputs else node.all_input_nodes
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        copies[node] = part.placeholder(node.name)
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(fx.map_arg(result, copies.__getitem__))
    return part


def _function(network: nn.Module, graph: fx.Graph) -> Callable[..., Any]:
    """`graph` as a function whose first argument is the network; it has no modules or tensors itself."""
    return type(fx.GraphModule(network, graph)).forward


def _title(node: fx.Node) -> str:
    """The module that computed a value, or the last one before the function that did."""
    inside = list(node.meta.get("nn_module_stack", {}))
    if node.op == "call_module" or inside or not node.all_input_nodes:
        return str(node.target) if node.op != "call_function" else inside[-1]
    return f"{_title(node.all_input_nodes[0])}/{getattr(node.target, '__name__', node.target)}"


def _check(network: nn.Module, cut: Cut, images: Tensor, features: tuple[Tensor, ...]) -> None:
    """Raise NoCut unless the suffix computes from `features` what the network computes from `images`, and the prefix
    computes the first of them from the first image alone.

    That guards against what a trace cannot show: steps that change in place a value which the other part still needs,
    layers that average over the batch, branches that depend on values.
    """
    forward = type(network).forward  # not __call__, which may be compiled
    with _buffers_kept(network), _generators_kept(images.device):
        whole = forward(network, images.clone())
    with _buffers_kept(network), _generators_kept(images.device):
        joined = cut.suffix(network, *(tensor.clone() for tensor in features))
    if not _alike(joined, whole, 1e-3):
        raise NoCut("its forward cannot be cut exactly")
    if not _alike(cut.prefix(network, images[:1].clone()), [tensor[:1] for tensor in features], 0.05):
        raise NoCut("its frozen layers mix the images of a batch")


def _alike(one: Any, other: Any, tolerance: float) -> bool:
    """Whether all tensors agree, up to `tolerance` of the largest number."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.dist(a.float(), b.float(), p=math.inf) <= tolerance * b.abs().max() for a, b in pairs)


@contextlib.contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.copy_(before)


def _generator_states(device: torch.device) -> list[Tensor]:
    """The states of the generators that a step on `device` may use."""
    own = GENERATORS.get(device.type)
    return [torch.get_rng_state(), *([own(device)] if own else [])]


def _generators_kept(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Context that restores the random generators afterwards."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)
