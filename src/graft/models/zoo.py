"""torchvision's classifiers by name, with a head for the classes wanted. Nothing is downloaded here."""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from graft.errors import ConfigError
from graft.models.configurations import SIZED
from graft.models.heads import draw_head, kind_of

ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": True, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": True, "transform_input": True, "init_weights": True},
}
"""What a builder is told besides the number of classes.

The weights of both Inceptions want [-1, 1]; `transform_input` takes ImageNet-normalised images there, as
torchvision's own builders do when they load weights. It is on without weights too, so that a network depends
on its recipe alone and a fine-tuned checkpoint means the same when it is read again. """

OLD_KEYS: dict[str, tuple[re.Pattern[str], str]] = {
    "DenseNet": (re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$"), r"\1\2"),
}
"""Kind of network -> how the names in its older weight files become today's."""

POSITIONS = "encoder.pos_embedding"
"""Where a torchvision ViT keeps them: [1, 1 + patches, width], the class token's first."""


def build_torchvision(
    name: str, num_classes: int, dropout: float | None = None, input_size: int | None = None
) -> nn.Module:
    """torchvision's network `name` at random, its head drawn as `heads.draw_head` does.

    Shapes: images [B, 3, S, S] -> logits [B, num_classes]. In training mode `inception_v3` returns
    `InceptionOutputs(logits, aux_logits)` and `googlenet` `GoogLeNetOutputs(logits, aux_logits2,
    aux_logits1)`.

    Args:
        name: any torchvision classifier.
        num_classes: length of the logits.
        dropout: probability of every dropout layer; None leaves the network's own.
        input_size: side of the image, in pixels, for a network that is built for one; None is its own.

    Raises:
        ConfigError: `dropout` for a network without dropout layers, an `input_size` it cannot be built for.
    """
    try:
        network = get_model(name, weights=None, num_classes=num_classes, **builder_arguments(name, input_size))
    except ValueError as error:
        raise ConfigError(f"model.input_size={input_size}: {name} cannot be built for it ({error}).") from error
    draw_head(network)
    if dropout is not None:
        layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            raise ConfigError(f"model.dropout={dropout}: {name} has no dropout layer. Leave model.dropout out.")
        for layer in layers:
            layer.p = dropout
    return network


def builder_arguments(name: str, input_size: int | None) -> dict[str, Any]:
    """What `name`'s builder is told besides the number of classes."""
    return ARGUMENTS.get(name, {}) | _side(name, input_size)


def _side(name: str, input_size: int | None) -> dict[str, Any]:
    """What `name`'s builder is told of the image's side."""
    argument = next((argument for start, argument in SIZED.items() if name.startswith(start)), None)
    if argument is None or input_size is None:
        return {}
    return {argument: input_size if argument == "image_size" else (input_size, input_size)}


def todays_keys(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` as the network has them: older names are replaced by today's, position embeddings of another image
    size are interpolated (Dosovitskiy et al. 2021, section 3.2)."""
    kind = kind_of(network)
    if kind in OLD_KEYS:
        old, new = OLD_KEYS[kind]
        return {old.sub(new, key): tensor for key, tensor in tensors.items()}
    if isinstance(network, VisionTransformer):
        return _positions_resized(network, tensors)
    return dict(tensors)


def _positions_resized(network: VisionTransformer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found, wanted = tensors.get(POSITIONS), network.encoder.pos_embedding
    if found is None or found.shape == wanted.shape or found.shape[::2] != wanted.shape[::2]:
        return dict(tensors)
    if math.isqrt(found.shape[1] - 1) ** 2 != found.shape[1] - 1:  # of no square image: to be refused by its shape
        return dict(tensors)
    return dict(interpolate_embeddings(network.image_size, network.patch_size, OrderedDict(tensors)))
