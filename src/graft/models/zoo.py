"""torchvision's classifiers by name, with a head for the classes wanted. Nothing is downloaded here."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model

from graft.errors import ConfigError
from graft.models.heads import draw_head

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
"""Class of network -> how the names in its older weight files become today's."""


def build_torchvision(name: str, num_classes: int, dropout: float | None = None) -> nn.Module:
    """torchvision's network `name` at random, its head drawn as `heads.draw_head` does.

    Shapes: images [B, 3, S, S] -> logits [B, num_classes]. In training mode `inception_v3` returns
    `InceptionOutputs(logits, aux_logits)` and `googlenet` `GoogLeNetOutputs(logits, aux_logits2,
    aux_logits1)`.

    Args:
        name: any torchvision classifier.
        num_classes: length of the logits.
        dropout: probability of every dropout layer; None leaves the network's own.

    Raises:
        ConfigError: `dropout` for a network without dropout layers.
    """
    network = get_model(name, weights=None, num_classes=num_classes, **ARGUMENTS.get(name, {}))
    draw_head(network)
    if dropout is not None:
        layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            raise ConfigError(f"model.dropout={dropout}: {name} has no dropout layer. Leave model.dropout out.")
        for layer in layers:
            layer.p = dropout
    return network


def todays_keys(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with the names that older weight files give them replaced by the network's own."""
    if type(network).__name__ not in OLD_KEYS:
        return dict(tensors)
    old, new = OLD_KEYS[type(network).__name__]
    return {old.sub(new, key): tensor for key, tensor in tensors.items()}
