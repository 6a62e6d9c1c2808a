"""A network as an ordered list of named parts, from input to output."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from torch import nn
from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2

from graft.models.heads import belongs, head_modules, kind_of

HEAD = "head"
CLASSIFIER = "classifier"
FEATURES = "features"
AUXILIARY = "aux"


@dataclass(frozen=True)
class Stage:
    """A part of a network that is frozen, unfrozen and given a learning rate together.

    Attributes:
        name: unique in the network, e.g. "block3".
        group: several stages may share one, e.g. "features"; learning rates go by group.
        modules: names of its modules (or of single parameters), each with all that is inside.
    """

    name: str
    group: str
    modules: tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Whether the parameter or module called `name` is in this stage."""
        return belongs(name, self.modules)


def stages_of(network: nn.Module) -> tuple[Stage, ...]:
    """The stages of `network`; each parameter is in exactly one.

    The VGGs have `block1..` (group features), the linear layers below the last (group classifier) and `head`.
    The other networks of `LAYOUTS` have the parts their papers name, timm's those that timm groups them into. Any
    other is taken apart at its own containers until no part holds more than half of the trunk.

    Raises:
        ConfigError: the network has no layer that could be its head.
    """
    layout = LAYOUTS.get(kind_of(network), _of_timm if kind_of(network).startswith("timm.") else _generic)
    return tuple(stage for stage in layout(network) if any(stage.holds(name) for name, _ in network.named_parameters()))


def stage_by_parameter(network: nn.Module, stages: Sequence[Stage]) -> dict[str, Stage]:
    """For each parameter of `network`, in order, the stage it belongs to."""
    return {name: next(stage for stage in stages if stage.holds(name)) for name, _ in network.named_parameters()}


def _cut(network: nn.Module, names: Sequence[str], trunk: Mapping[str, str]) -> list[Stage]:
    """Stages of the modules (or single parameters) `names`.

    What has no parameters goes with what comes before it in the same container, else with what comes next.

    Args:
        network: whose modules.
        names: from input to output.
        trunk: name -> stage, a group of its own. What belongs to the head is the stage `head`, the last; of the rest
            each is a stage of the group `classifier`.
    """
    parameters = [name for name, _ in network.named_parameters()]
    head = head_modules(network)
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
        title = f"trunk.{title}" if title in (HEAD, CLASSIFIER, AUXILIARY) else title  # a module may be called so
        place = (title, title if name in trunk else CLASSIFIER)
        last = parts.setdefault((HEAD, HEAD) if belongs(inside[0], head) else place, [])
        last += [name, *pending]
        pending = []
    parts[HEAD, HEAD] = parts.pop((HEAD, HEAD))
    return [Stage(name, group, tuple(part)) for (name, group), part in parts.items()]


def _children(network: nn.Module, container: str) -> list[str]:
    return [f"{container}.{name}" for name, _ in network.get_submodule(container).named_children()]


def _plain(network: nn.Module) -> list[Stage]:
    """VGG, AlexNet, SqueezeNet: convolutions cut behind each max-pool (block1, ...), then the classifier."""
    blocks: list[list[str]] = [[]]
    for name, layer in network.get_submodule(FEATURES).named_children():
        blocks[-1].append(f"{FEATURES}.{name}")
        if isinstance(layer, nn.MaxPool2d):
            blocks.append([])
    above = [name for name, module in network.named_children() if name != FEATURES and [*module.parameters()]]
    layers = [part for name in above for part in _children(network, name) or [name]]
    return [
        *(Stage(f"block{i}", FEATURES, tuple(block)) for i, block in enumerate(filter(None, blocks), start=1)),
        *_cut(network, layers, {}),
    ]


def _halving(container: str, *above: str) -> Callable[[nn.Module], list[Stage]]:
    """Networks of one long row of blocks: stage1, ... each begins where the map is halved, as a ResNet's do.

    Args:
        container: name of the module whose children are the row.
        above: what follows the row: modules of the last stage, then the container of the head or the head.
    """

    def layout(network: nn.Module) -> list[Stage]:
        row = _children(network, container)
        halves = [any(map(_is_halving, network.get_submodule(name).modules())) for name in row]
        numbers = [max(1, sum(halves[: i + 1])) for i in range(len(row))]
        trunk = {name: f"stage{number}" for name, number in zip(row, numbers, strict=True)}
        trunk |= dict.fromkeys(above[:-1], f"stage{numbers[-1]}")
        return _cut(network, [*trunk, *(_children(network, above[-1]) or above[-1:])], trunk)

    return layout


def _is_halving(module: nn.Module) -> bool:
    """Whether `module` itself gives out a smaller map than it takes."""
    if isinstance(module, nn.Conv2d):
        return max(module.stride) > 1
    return isinstance(module, PatchMerging | PatchMergingV2)


def _transformer(network: nn.Module) -> list[Stage]:
    """ViT: patches, class token and positions are the stem, each layer of the encoder is a stage."""
    layers = _children(network, "encoder.layers")
    trunk = dict.fromkeys(("class_token", "conv_proj", "encoder.pos_embedding", "encoder.dropout"), "stem")
    trunk |= {name: name.rpartition(".")[2] for name in layers}
    trunk["encoder.ln"] = trunk[layers[-1]]
    return _cut(network, [*trunk, *_children(network, "heads")], trunk)


def _maxvit(network: nn.Module) -> list[Stage]:
    trunk = {"stem": "stem"} | {name: f"block{i}" for i, name in enumerate(_children(network, "blocks"), start=1)}
    return _cut(network, [*trunk, *_children(network, CLASSIFIER)], trunk)


def _of_timm(network: nn.Module) -> list[Stage]:
    """What timm's own `group_matcher` puts together, from input to output; what it leaves over is above the trunk."""
    from timm.models import group_parameters

    try:
        order = group_parameters(network, network.group_matcher(coarse=True), reverse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # a few have none, or none this coarse
        return _generic(network)
    head = head_modules(network)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    places: dict[str, int] = {}
    largest: dict[int, tuple[int, str]] = {}
    place = -1
    for name in _whole(network, "", lambda key: (order[key], belongs(key, head))):
        inside = [key for key in sizes if belongs(key, (name,))]
        place = places[name] = order[inside[0]] if inside else place
        size = sum(sizes[key] for key in inside)
        largest[place] = max(largest.get(place, (-1, "")), (size, name), key=itemgetter(0))
    titles = {place: name for place, (_, name) in largest.items()} | {0: "stem"}
    top = order[f"{head[0]}.weight"]
    trunk = {name: titles[place] for name, place in places.items() if place != top}
    return _cut(network, sorted(places, key=lambda name: places[name]), trunk)


def _whole(network: nn.Module, prefix: str, sort_of: Callable[[str], Hashable]) -> Iterator[str]:
    """The largest modules (or single parameters) below `prefix` whose parameters are all of one sort, in order."""
    for name in _inside(network, prefix):
        keys = [key for key, _ in network.named_parameters() if belongs(key, (name,))]
        if len({sort_of(key) for key in keys}) > 1:
            yield from _whole(network, name, sort_of)
        else:
            yield name


def _inside(network: nn.Module, prefix: str) -> list[str]:
    """Names of the parameters and modules that the module `prefix` itself has."""
    module = network.get_submodule(prefix)
    names = [name for name, _ in module.named_parameters(recurse=False)]
    names += [name for name, _ in module.named_children()]
    return [f"{prefix}.{name}" if prefix else name for name in names]


def _generic(network: nn.Module) -> list[Stage]:
    """Any network: its children, opened as long as one hides the head or more than half of the trunk."""
    head = head_modules(network)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    half = sum(size for name, size in sizes.items() if not belongs(name, head)) / 2

    def opened(name: str) -> list[str]:
        if name in sizes or belongs(name, head) or not any(True for _ in network.get_submodule(name).children()):
            return [name]
        hides = any(belongs(module, (name,)) for module in head)
        heavy = sum(size for parameter, size in sizes.items() if belongs(parameter, (name,))) > half
        return [part for child in _inside(network, name) for part in opened(child)] if hides or heavy else [name]

    beside_head = head[0].rpartition(".")[0]
    names = [part for child in _inside(network, "") for part in opened(child)]
    trunk: dict[str, str] = {}
    following = ""
    for name in reversed(names):
        if not (beside_head and belongs(name, (beside_head,))):  # tokens and positions go with the module they precede
            following = trunk[name] = following if name in sizes and following else name
    return _cut(network, names, trunk)


def _rows(*rows: tuple[str, tuple[str, ...]]) -> Callable[[nn.Module], list[Stage]]:
    return lambda network: [Stage(name, name, modules) for name, modules in rows]


def _each(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(prefix + name for name in names)


LAYOUTS: Mapping[str, Callable[[nn.Module], list[Stage]]] = {
    "VGG": _plain,
    "timm.VGG": _plain,
    "AlexNet": _plain,
    "SqueezeNet": _plain,
    "ConvNeXt": _halving(FEATURES, CLASSIFIER),
    "EfficientNet": _halving(FEATURES, CLASSIFIER),
    "MNASNet": _halving("layers", CLASSIFIER),
    "MobileNetV2": _halving(FEATURES, CLASSIFIER),
    "MobileNetV3": _halving(FEATURES, CLASSIFIER),
    "SwinTransformer": _halving(FEATURES, "norm", HEAD),
    "VisionTransformer": _transformer,
    "MaxVit": _maxvit,
    "RegNet": _rows(
        ("stem", ("stem",)),
        *((f"block{i}", (f"trunk_output.block{i}",)) for i in range(1, 5)),
        (HEAD, ("avgpool", "fc")),
    ),
    "ShuffleNetV2": _rows(
        ("stem", ("conv1", "maxpool")),
        *((f"stage{i}", (f"stage{i}",)) for i in range(2, 5)),
        ("conv5", ("conv5",)),
        (HEAD, ("fc",)),
    ),
    "VGGSpeed": _rows(
        ("block1", _each("features.", "whitening", "act", "block1")),
        ("block2", ("features.block2",)),
        ("block3", ("features.block3",)),
        (HEAD, (CLASSIFIER,)),
    ),
    "ResNet": _rows(
        ("stem", ("conv1", "bn1", "relu", "maxpool")),
        ("layer1", ("layer1",)),
        ("layer2", ("layer2",)),
        ("layer3", ("layer3",)),
        ("layer4", ("layer4",)),
        (HEAD, ("avgpool", "fc")),
    ),
    "DenseNet": _rows(
        ("stem", _each("features.", "conv0", "norm0", "relu0", "pool0")),
        ("denseblock1", _each("features.", "denseblock1", "transition1")),
        ("denseblock2", _each("features.", "denseblock2", "transition2")),
        ("denseblock3", _each("features.", "denseblock3", "transition3")),
        ("denseblock4", _each("features.", "denseblock4", "norm5")),
        (HEAD, (CLASSIFIER,)),
    ),
    "Inception3": _rows(
        (
            "stem",
            (
                *_each("Conv2d_", "1a_3x3", "2a_3x3", "2b_3x3"),
                "maxpool1",
                "Conv2d_3b_1x1",
                "Conv2d_4a_3x3",
                "maxpool2",
            ),
        ),
        ("Mixed_5", _each("Mixed_", "5b", "5c", "5d")),
        ("Mixed_6", _each("Mixed_", "6a", "6b", "6c", "6d", "6e")),
        (AUXILIARY, ("AuxLogits.conv0", "AuxLogits.conv1")),
        ("Mixed_7", _each("Mixed_", "7a", "7b", "7c")),
        (HEAD, ("avgpool", "dropout", "fc", "AuxLogits.fc")),
    ),
    "GoogLeNet": _rows(
        ("stem", ("conv1", "maxpool1", "conv2", "conv3", "maxpool2")),
        ("inception3", ("inception3a", "inception3b", "maxpool3")),
        ("inception4", (*_each("inception4", *"abcde"), "maxpool4")),
        (AUXILIARY, (*_each("aux1.", "conv", "fc1", "dropout"), *_each("aux2.", "conv", "fc1", "dropout"))),
        ("inception5", ("inception5a", "inception5b")),
        (HEAD, ("avgpool", "dropout", "fc", "aux1.fc2", "aux2.fc2")),
    ),
}
