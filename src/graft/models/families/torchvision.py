"""torchvision's classifiers by name, with a head for other classes. Imports no torch; nothing is downloaded here."""

import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError
from graft.models.configurations import Facts, check_dropout_and_size, registered_models
from graft.models.families.base import (
    Constructor,
    ModelFamily,
    refuse_vgg_options,
    take_channels,
    usual_preprocessing,
)
from graft.models.layouts import (
    AUXILIARY,
    CLASSIFIER,
    FEATURES,
    HEAD,
    Layout,
    Stage,
    by_max_pool,
    children_of,
    cut_into_stages,
    generic,
    prefixed,
    rows,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graft.models.recipe import Recipe


def network(name: str, *, num_classes: int, dropout: float | None = None, input_size: int | None = None) -> "nn.Module":
    """torchvision's network `name` with random weights and a head for `num_classes` classes.

    Shapes: images [B, 3, H, W] -> logits [B, num_classes]. In training mode `inception_v3` returns
    `InceptionOutputs(logits, aux_logits)` and `googlenet` `GoogLeNetOutputs(logits, aux_logits2,
    aux_logits1)`.

    Args:
        name: any torchvision classifier.
        num_classes: length of the logits.
        dropout: probability of every dropout layer, in [0, 1); None leaves the network's own.
        input_size: side of the image, in pixels, for a network of fixed input size; None is its own.

    Raises:
        ConfigError: an unknown name, `dropout` for a network without dropout layers, an `input_size` that it cannot be
            built for.
    """
    from graft.models.recipe import Recipe

    return FAMILY.build(Recipe(name, dropout=dropout, input_size=input_size), num_classes)


NETWORKS: dict[str, Facts] = {
    "alexnet": Facts(min_size=63, batch_norm=False),
    "resnet18": Facts(batch_norm=True),
    "squeezenet1_0": Facts(min_size=21, batch_norm=False),
    "squeezenet1_1": Facts(min_size=17, batch_norm=False),
    "densenet121": Facts(min_size=29, batch_norm=True),
    "inception_v3": Facts(299, min_size=299, batch_norm=True),
    "googlenet": Facts(min_size=15, batch_norm=True),
}
"""Facts about those networks that have them; the others are for 224 pixels as far as is known without torch."""

SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
"""First letters of the networks of fixed input size -> the argument of their builders."""

ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": True, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": True, "transform_input": True, "init_weights": True},
}
"""Further arguments of a builder.

The weights of both Inceptions expect images in [-1, 1]; `transform_input` maps ImageNet-normalised images there, as
torchvision's own builders do when they load weights. It is set without weights too, so that a network depends
on its recipe alone and a fine-tuned checkpoint means the same when it is read again."""

WITHOUT_EFFECT = ("aux_logits", "init_weights")
"""Arguments of a builder that change nothing in a network whose weights are loaded afterwards."""

HEADS: dict[str, tuple[str, ...]] = {
    "AlexNet": ("classifier.6",),
    "DenseNet": ("classifier",),
    "GoogLeNet": ("fc", "aux1.fc2", "aux2.fc2"),
    "Inception3": ("fc", "AuxLogits.fc"),
    "ResNet": ("fc",),
    "SqueezeNet": ("classifier.1",),
}
"""Class of network -> its head; of any other it is the last linear layer or convolution."""

CLASSIFIERS: dict[str, tuple[str, ...]] = {"VGG": ("classifier",), "AlexNet": ("classifier",)}
"""Class of network -> the modules between trunk and head."""

AUXILIARIES: dict[str, tuple[str, ...]] = {"Inception3": ("AuxLogits",), "GoogLeNet": ("aux1", "aux2")}
"""Class of network -> its auxiliary classifiers."""

OLD_KEYS: dict[str, tuple[re.Pattern[str], str]] = {
    "DenseNet": (re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$"), r"\1\2"),
}
"""Class of network -> names of tensors in its older weight files, and what replaces them."""

POSITIONS = "encoder.pos_embedding"
"""The position embeddings of a torchvision ViT: [1, 1 + patches, width], the class token's first."""


@cache
def classifiers() -> frozenset[str]:
    """Names of torchvision's image classifiers."""
    return registered_models("torchvision")


class Torchvision(ModelFamily):
    """Every network in torchvision.models that classifies images."""

    resized_by_weights = True

    def facts(self, recipe: "Recipe") -> Facts:
        facts = NETWORKS.get(recipe.name)
        if facts is None:
            if recipe.name not in classifiers():
                raise ConfigError(f'model.name="{recipe.name}": no such network of torchvision.')
            facts = Facts(fixed_size=recipe.name.startswith(tuple(SIZED)))
        refuse_vgg_options(recipe, "torchvision")
        changes = {key: value for key in ("dropout", "input_size") if (value := getattr(recipe, key)) is not None}
        facts = replace(facts, **changes)
        check_dropout_and_size(facts)
        if recipe.channels is not None and "transform_input" in ARGUMENTS.get(recipe.name, {}):
            raise ConfigError(
                f"data.channels={recipe.channels} and model={recipe.name} disagree: it normalises RGB images itself.\n"
                "Choose another network."
            )
        return facts

    def torchvision_name(self, recipe: "Recipe") -> str | None:
        self.facts(recipe)
        return recipe.name

    def known_preprocessing(self, recipe: "Recipe", weights: str | None) -> Preprocessing | None:
        """torchvision's weights of the networks in `NETWORKS` expect the usual preprocessing."""
        known = weights is None or (weights == "default" and recipe.name in NETWORKS)
        return usual_preprocessing(self.facts(recipe)) if known else None

    def build(self, recipe: "Recipe", num_classes: int) -> "nn.Module":
        from torch import nn
        from torchvision.models import get_model

        self.facts(recipe)
        name, size = recipe.name, recipe.input_size
        try:
            built = get_model(name, weights=None, num_classes=num_classes, **builder_arguments(name, size))
        except ValueError as error:
            raise ConfigError(f"model.input_size={size}: {name} cannot be built for it ({error}).") from error
        self.reset_head(built)
        take_channels(built, self.first_conv(built), recipe)
        if recipe.dropout is not None:
            layers = [module for module in built.modules() if isinstance(module, nn.Dropout)]
            if not layers:
                raise ConfigError(
                    f"model.dropout={recipe.dropout}: {name} has no dropout layer. Leave model.dropout out."
                )
            for layer in layers:
                layer.p = recipe.dropout
        return built

    def constructor(self, recipe: "Recipe", network: "nn.Module", num_classes: int) -> Constructor:
        if recipe.channels is not None:
            return super().constructor(recipe, network, num_classes)
        return library_constructor(recipe.name, recipe.input_size, num_classes)

    def head(self, network: "nn.Module") -> tuple[str, ...]:
        return HEADS.get(type(network).__name__) or super().head(network)

    def reset_head(self, network: "nn.Module") -> None:
        for name in self.head(network):
            RESETS.get(type(network).__name__, _reset_layer)(network.get_submodule(name))

    def classifier(self, network: "nn.Module") -> tuple[str, ...]:
        return CLASSIFIERS.get(type(network).__name__, ())

    def bounds(self, network: "nn.Module") -> tuple[str, ...]:
        return BOUNDS.get(type(network).__name__, ())

    def auxiliary(self, network: "nn.Module") -> tuple[str, ...]:
        return AUXILIARIES.get(type(network).__name__, ())

    def stages(self, network: "nn.Module") -> list[Stage]:
        return LAYOUTS.get(type(network).__name__, generic)(network, self.head(network))

    def convert(self, network: "nn.Module", recipe: "Recipe", tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        return convert(network, tensors)


def builder_arguments(name: str, input_size: int | None) -> dict[str, Any]:
    """The arguments of the builder of `name` besides the number of classes."""
    argument = next((argument for start, argument in SIZED.items() if name.startswith(start)), None)
    if argument is None or input_size is None:
        return dict(ARGUMENTS.get(name, {}))
    return {**ARGUMENTS.get(name, {}), argument: input_size if argument == "image_size" else (input_size, input_size)}


def library_constructor(name: str, input_size: int | None, num_classes: int) -> Constructor:
    """How torchvision makes its network `name` with random weights."""
    from torchvision.models import get_model

    arguments = {key: v for key, v in builder_arguments(name, input_size).items() if key not in WITHOUT_EFFECT}
    arguments = {"num_classes": num_classes, **arguments}

    def make() -> "nn.Module":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # GoogLeNet's and Inception's, about their initialisation
            return get_model(name, **arguments)

    return Constructor("torchvision", call_line("torchvision.models.get_model", name, arguments), make)


def call_line(function: str, name: str, arguments: Mapping[str, Any]) -> str:
    """The Python that calls `function` with a name and these arguments."""
    return f"{function}({', '.join([repr(name), *(f'{key}={value!r}' for key, value in arguments.items())])})"


def convert(network: "nn.Module", tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """`tensors` under today's names, position embeddings interpolated to the network's input size (Dosovitskiy et al.
    2021, section 3.2)."""
    if type(network).__name__ in OLD_KEYS:
        old, new = OLD_KEYS[type(network).__name__]
        return {old.sub(new, key): tensor for key, tensor in tensors.items()}
    if type(network).__name__ == "VisionTransformer":
        return _resized_positions(network, tensors)
    return dict(tensors)


def _resized_positions(network: "nn.Module", tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    assert isinstance(network, VisionTransformer)
    found, own = tensors.get(POSITIONS), network.encoder.pos_embedding
    if found is None or found.shape == own.shape or found.shape[::2] != own.shape[::2]:
        return dict(tensors)
    if math.isqrt(found.shape[1] - 1) ** 2 != found.shape[1] - 1:  # not of a square image: its shape will be refused
        return dict(tensors)
    return dict(interpolate_embeddings(network.image_size, network.patch_size, OrderedDict(tensors)))


# -- initialisation of the head


def _reset_layer(layer: "nn.Module") -> None:
    layer.reset_parameters()  # type: ignore[operator]


def _reset_squeezenet_head(layer: "nn.Module") -> None:
    """Initialise SqueezeNet's 1x1 convolution as Iandola et al. 2016 do: N(0, 0.01) and bias 0.

    A class's logit is the mean over the map of ReLU(w x + b), so one large step can shut a class for good: its logit
    is 0, its gradient is 0, and it never recovers. The trunk's features are of size 40, and fine-tuning 1.0 on ants
    and bees with SGD 0.001, momentum 0.9 shuts both within an epoch. Clipped gradients prevent that, which is why
    `conf/model/squeezenet1_*.yaml` set them; a large bias (10), which keeps every ReLU in its linear part at first,
    was tried and does not."""
    import torch
    from torch import nn

    with torch.no_grad():
        nn.init.normal_(layer.weight, 0.0, 0.01)  # type: ignore[arg-type]
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


BOUNDS = {"SqueezeNet": ("classifier.2",)}
"""Class of network -> the ReLU after its head: softmax does not mind it, but no sigmoid would be below one half."""

RESETS: dict[str, Callable[["nn.Module"], None]] = {"SqueezeNet": _reset_squeezenet_head}
"""Class of network -> how its head is re-initialised; the others as a new layer is."""


# -- stages


def halving(container: str, *above: str) -> Layout:
    """Networks of one long row of blocks: stage1, ... each begins where the map is halved, as a ResNet's do.

    Args:
        container: name of the module whose children are the row.
        above: what follows the row: modules of the last stage, then the container of the head or the head.
    """

    def layout(network: "nn.Module", head: tuple[str, ...]) -> list[Stage]:
        row = children_of(network, container)
        halves = [any(map(_is_halving, network.get_submodule(name).modules())) for name in row]
        numbers = [max(1, sum(halves[: i + 1])) for i in range(len(row))]
        trunk = {name: f"stage{number}" for name, number in zip(row, numbers, strict=True)}
        trunk |= dict.fromkeys(above[:-1], f"stage{numbers[-1]}")
        return cut_into_stages(network, head, [*trunk, *(children_of(network, above[-1]) or above[-1:])], trunk)

    return layout


def _is_halving(module: "nn.Module") -> bool:
    """Whether the output map of `module` itself is smaller than its input."""
    from torch import nn
    from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2

    if isinstance(module, nn.Conv2d):
        return max(module.stride) > 1
    return isinstance(module, PatchMerging | PatchMergingV2)


def _transformer(network: "nn.Module", head: tuple[str, ...]) -> list[Stage]:
    """ViT: patches, class token and positions are the stem, each layer of the encoder is a stage."""
    layers = children_of(network, "encoder.layers")
    trunk = dict.fromkeys(("class_token", "conv_proj", "encoder.pos_embedding", "encoder.dropout"), "stem")
    trunk |= {name: name.rpartition(".")[2] for name in layers}
    trunk["encoder.ln"] = trunk[layers[-1]]
    return cut_into_stages(network, head, [*trunk, *children_of(network, "heads")], trunk)


def _maxvit(network: "nn.Module", head: tuple[str, ...]) -> list[Stage]:
    trunk = {"stem": "stem"} | {name: f"block{i}" for i, name in enumerate(children_of(network, "blocks"), start=1)}
    return cut_into_stages(network, head, [*trunk, *children_of(network, CLASSIFIER)], trunk)


LAYOUTS: Mapping[str, Layout] = {
    "VGG": by_max_pool,
    "AlexNet": by_max_pool,
    "SqueezeNet": by_max_pool,
    "ConvNeXt": halving(FEATURES, CLASSIFIER),
    "EfficientNet": halving(FEATURES, CLASSIFIER),
    "MNASNet": halving("layers", CLASSIFIER),
    "MobileNetV2": halving(FEATURES, CLASSIFIER),
    "MobileNetV3": halving(FEATURES, CLASSIFIER),
    "SwinTransformer": halving(FEATURES, "norm", HEAD),
    "VisionTransformer": _transformer,
    "MaxVit": _maxvit,
    "RegNet": rows(
        ("stem", ("stem",)),
        *((f"block{i}", (f"trunk_output.block{i}",)) for i in range(1, 5)),
        (HEAD, ("avgpool", "fc")),
    ),
    "ShuffleNetV2": rows(
        ("stem", ("conv1", "maxpool")),
        *((f"stage{i}", (f"stage{i}",)) for i in range(2, 5)),
        ("conv5", ("conv5",)),
        (HEAD, ("fc",)),
    ),
    "ResNet": rows(
        ("stem", ("conv1", "bn1", "relu", "maxpool")),
        ("layer1", ("layer1",)),
        ("layer2", ("layer2",)),
        ("layer3", ("layer3",)),
        ("layer4", ("layer4",)),
        (HEAD, ("avgpool", "fc")),
    ),
    "DenseNet": rows(
        ("stem", prefixed("features.", "conv0", "norm0", "relu0", "pool0")),
        ("denseblock1", prefixed("features.", "denseblock1", "transition1")),
        ("denseblock2", prefixed("features.", "denseblock2", "transition2")),
        ("denseblock3", prefixed("features.", "denseblock3", "transition3")),
        ("denseblock4", prefixed("features.", "denseblock4", "norm5")),
        (HEAD, (CLASSIFIER,)),
    ),
    "Inception3": rows(
        (
            "stem",
            (
                *prefixed("Conv2d_", "1a_3x3", "2a_3x3", "2b_3x3"),
                "maxpool1",
                "Conv2d_3b_1x1",
                "Conv2d_4a_3x3",
                "maxpool2",
            ),
        ),
        ("Mixed_5", prefixed("Mixed_", "5b", "5c", "5d")),
        ("Mixed_6", prefixed("Mixed_", "6a", "6b", "6c", "6d", "6e")),
        (AUXILIARY, ("AuxLogits.conv0", "AuxLogits.conv1")),
        ("Mixed_7", prefixed("Mixed_", "7a", "7b", "7c")),
        (HEAD, ("avgpool", "dropout", "fc", "AuxLogits.fc")),
    ),
    "GoogLeNet": rows(
        ("stem", ("conv1", "maxpool1", "conv2", "conv3", "maxpool2")),
        ("inception3", ("inception3a", "inception3b", "maxpool3")),
        ("inception4", (*prefixed("inception4", *"abcde"), "maxpool4")),
        (AUXILIARY, (*prefixed("aux1.", "conv", "fc1", "dropout"), *prefixed("aux2.", "conv", "fc1", "dropout"))),
        ("inception5", ("inception5a", "inception5b")),
        (HEAD, ("avgpool", "dropout", "fc", "aux1.fc2", "aux2.fc2")),
    ),
}
"""Class of network -> how its stages, which its paper names, are found; any other is opened at its own containers."""

FAMILY = Torchvision()
