"""What is known of every network before one is built: layer tables, input sizes, pools. Imports no torch.

The letters are the columns of table 1 in Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for
Large-Scale Image Recognition": a number is a 3x3 convolution with so many channels, "M" a 2x2 max-pool.
"""

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from graft.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD

M: Literal["M"] = "M"
Layer = int | Literal["M"]
Table = tuple[Layer, ...]
Channels = tuple[float, float, float]

CIFAR_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Channels = (0.2470, 0.2435, 0.2616)

CLASSIFIERS = ("vgg", "linear", "pooled")
BUNDLED = Path(__file__).parent / "bundled"

# fmt: off
TABLES: dict[str, Table] = {
    "A": (64, M, 128, M, 256, 256, M, 512, 512, M, 512, 512, M),
    "B": (64, 64, M, 128, 128, M, 256, 256, M, 512, 512, M, 512, 512, M),
    "D": (64, 64, M, 128, 128, M, 256, 256, 256, M, 512, 512, 512, M, 512, 512, 512, M),
    "E": (64, 64, M, 128, 128, M, 256, 256, 256, 256, M, 512, 512, 512, 512, M, 512, 512, 512, 512, M),
    "custom": (64, 64, 64, M, 128, 128, 128, M, 256, 256, 256, M),
    "cifar": (32, 32, M, 64, 64, 128, 128, 128, M, 256, 256, 256, 512, 512, 512, M),
    "mini": (32, 32, M, 64, 64, M, 128, 128, 128, M, 256, 256, 256, M),
}
# fmt: on


@dataclass(frozen=True)
class Facts:
    """A network, described.

    Attributes:
        family: "vgg" and "vgg_speed" are built by `graft.models`, "torchvision" and "timm" by those libraries.
        input_size: side of the square image it is made for, in pixels; of timm's networks only timm knows it.
        min_size: smallest side that its pools (in training also its auxiliary head) allow, in pixels.
        batch_norm: whether it holds BatchNorm; None where that is known only once it is built.
        table: the convolutions and pools of a VGG.
        classifier: what is on top of a VGG's convolutions: "vgg", "linear" or "pooled".
        average_pool: side of the adaptive average pool under a VGG's classifier; 0 is none.
        dropout: probability in the classifier; None is the network's own.
        mean, std: per RGB channel, of values in [0, 1]: how images are normalised where weights say nothing.
        sized: whether it is built for one size of image, as position embeddings are.
    """

    family: Literal["vgg", "vgg_speed", "torchvision", "timm"]
    input_size: int = 224
    min_size: int = 1
    batch_norm: bool | None = None
    table: Table | None = None
    classifier: str | None = None
    average_pool: int | None = None
    dropout: float | None = None
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    sized: bool = False

    @property
    def fixed_size(self) -> bool:
        """Whether it takes images of exactly `input_size`."""
        flat = self.family == "vgg" and self.classifier != "pooled" and not self.average_pool
        return flat or self.sized


def _vgg(letter: str, *, batch_norm: bool, **others: Any) -> Facts:
    """The row of a VGG for 224-pixel images; `others` are what differs."""
    table = TABLES[letter]
    usual = {"classifier": "vgg", "average_pool": 7, "table": table, "min_size": smallest_input(table)}
    return Facts("vgg", **{**usual, "batch_norm": batch_norm, **others})


def smallest_input(table: Iterable[Layer]) -> int:
    """Side of the smallest image of which `table`'s pools leave a pixel: 2 to the number of pools."""
    return int(2 ** sum(layer == M for layer in table))


TORCHVISION_VGGS: dict[str, tuple[str, bool]] = {
    "vgg11": ("A", False),
    "vgg11_bn": ("A", True),
    "vgg13": ("B", False),
    "vgg13_bn": ("B", True),
    "vgg16": ("D", False),
    "vgg16_bn": ("D", True),
    "vgg19": ("E", False),
    "vgg19_bn": ("E", True),
}

FOR_CIFAR: dict[str, Any] = {"input_size": 32, "average_pool": 0, "mean": CIFAR_MEAN, "std": CIFAR_STD}

NETWORKS: dict[str, Facts] = {
    **{name: _vgg(letter, batch_norm=batch_norm) for name, (letter, batch_norm) in TORCHVISION_VGGS.items()},
    "vgg_custom": _vgg("custom", batch_norm=True),
    "vgg16_cifar": _vgg("cifar", batch_norm=False, **FOR_CIFAR),
    "vgg_mini": _vgg("mini", batch_norm=True, classifier="pooled", **FOR_CIFAR),
    "vgg_speed": Facts("vgg_speed", 32, min_size=9, batch_norm=True, mean=CIFAR_MEAN, std=CIFAR_STD),
    "alexnet": Facts("torchvision", min_size=63, batch_norm=False),
    "resnet18": Facts("torchvision", batch_norm=True),
    "squeezenet1_0": Facts("torchvision", min_size=21, batch_norm=False),
    "squeezenet1_1": Facts("torchvision", min_size=17, batch_norm=False),
    "densenet121": Facts("torchvision", min_size=29, batch_norm=True),
    "inception_v3": Facts("torchvision", 299, min_size=299, batch_norm=True),
    "googlenet": Facts("torchvision", min_size=15, batch_norm=True),
}

SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
"""How the names of those torchvision networks begin that are built for one size of image -> its builder's argument."""


@cache
def torchvision_classifiers() -> frozenset[str]:
    """Names of torchvision's image classifiers."""
    return _registered("torchvision")


@cache
def timm_architectures() -> frozenset[str]:
    """Names of timm's networks without the tags of their weights; empty where timm is not installed."""
    return _registered("timm")


def _registered(package: str) -> frozenset[str]:
    """Names of the networks in `package`.models, read from its source text so that torch is not imported."""
    spec = importlib.util.find_spec(package)
    folders = [Path(place) / "models" for place in (spec.submodule_search_locations or ())] if spec else []
    registered = re.compile(r"^@register_model(?:\(\))?\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    texts = (file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py")))
    return frozenset(name for text in texts for name in registered.findall(text))


def known_models() -> tuple[str, ...]:
    """Every name `model.name` may have: ours first, then torchvision's other classifiers."""
    return *NETWORKS, *sorted(torchvision_classifiers() - set(NETWORKS))
