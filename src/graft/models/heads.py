"""Where a network's head is: the layers drawn anew for new classes, and what else is above the trunk."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from graft.errors import ConfigError
from graft.models.vgg import VGG
from graft.models.vgg_speed import VGGSpeed

HEADS: dict[str, tuple[str, ...]] = {
    "AlexNet": ("classifier.6",),
    "DenseNet": ("classifier",),
    "GoogLeNet": ("fc", "aux1.fc2", "aux2.fc2"),
    "Inception3": ("fc", "AuxLogits.fc"),
    "ResNet": ("fc",),
    "SqueezeNet": ("classifier.1",),
}
"""Kind of network -> its head. A VGG says its own; of any other it is the last linear layer or
convolution."""

TOPS: dict[str, tuple[str, ...]] = {
    "VGG": ("classifier",),
    "AlexNet": ("classifier",),
    "Inception3": ("AuxLogits",),
    "GoogLeNet": ("aux1", "aux2"),
}
"""Kind of network -> modules above the trunk that a weight file may lack as a whole, besides the head."""


def kind_of(network: nn.Module) -> str:
    """Class name of a network of ours or of torchvision; "timm.NAME" of timm's, some of which are called the same."""
    library = type(network).__module__.split(".")[0]
    name = type(network).__name__
    return name if library in ("graft", "torchvision") else f"{library}.{name}"


def head_modules(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules that make logits, with a normalisation that is part of it; the main head first.

    Raises:
        ConfigError: the network has neither a linear layer nor a convolution.
    """
    if isinstance(network, VGG | VGGSpeed):
        return network.head
    if kind_of(network) in HEADS:
        return HEADS[kind_of(network)]
    if told := getattr(network, "pretrained_cfg", {}).get("classifier"):  # a network of timm says it
        return (told,) if isinstance(told, str) else tuple(told)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ConfigError(f"{type(network).__name__}: no linear layer or convolution that could be its head.")
    return (layers[-1],)


def top_modules(network: nn.Module) -> tuple[str, ...]:
    """Names of the modules above the trunk, the head among them."""
    return *TOPS.get(kind_of(network), ()), *head_modules(network)


def belongs(name: str, modules: Iterable[str]) -> bool:
    """Whether a parameter's or module's `name` is one of `modules` or lies inside one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def draw_fresh_layer(layer: nn.Module) -> None:
    """Draw a head as a new `nn.Linear` or `nn.Conv2d` draws itself: what replacing it by hand gives."""
    layer.reset_parameters()  # type: ignore[operator]


@torch.no_grad()
def draw_squeezenet_head(layer: nn.Module) -> None:
    """Draw SqueezeNet's 1x1 convolution as Iandola et al. 2016 do: N(0, 0.01) and bias 0.

    A class's logit is the mean over the map of ReLU(w x + b), so one large step can shut a class for good: its logit
    is 0, its gradient is 0, and it never comes back. The trunk's features are of size 40, and fine-tuning 1.0 on ants
    and bees with SGD 0.001, momentum 0.9 dies so within an epoch. Clipped gradients keep it alive, which is why
    `conf/model/squeezenet1_*.yaml` say so; a large bias (10), which keeps every ReLU in its
    linear part at first, was tried and does not."""
    nn.init.normal_(layer.weight, 0.0, 0.01)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


DRAWERS: dict[str, Callable[[nn.Module], None]] = {"SqueezeNet": draw_squeezenet_head}


def draw_head(network: nn.Module) -> None:
    """Draw the head of one of torchvision's networks anew from torch's global generator."""
    draw = DRAWERS.get(kind_of(network), draw_fresh_layer)
    for name in head_modules(network):
        draw(network.get_submodule(name))
