"""Facts about networks before one is built, and the layer tables of the VGGs. Imports no torch.

The letters are the columns of table 1 in Simonyan & Zisserman 2015, "Very Deep Convolutional Networks for
Large-Scale Image Recognition": a number is a 3x3 convolution with this number of channels, "M" a 2x2 max-pool.
"""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graft.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from graft.errors import ConfigError

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
    """What is known about a network before it is built.

    Attributes:
        input_size: side of the square image it is made for, in pixels; of timm's networks only timm knows it.
        min_size: smallest side that its pools (in training also its auxiliary head) allow, in pixels.
        fixed_size: whether it takes images of exactly `input_size`, as far as that is known without its library.
        batch_norm: whether it has BatchNorm; None where that is known only once it is built.
        table: the convolutions and pools of a VGG.
        classifier: the classifier of a VGG: "vgg", "linear" or "pooled".
        average_pool: side of the adaptive average pool before a VGG's classifier; 0 is none.
        hidden: width of the two hidden linear layers of a VGG's classifier; None is 4096.
        dropout: probability in the classifier; None is the network's own.
        mean, std: per RGB channel, of values in [0, 1]: how images are normalised where the weights do not define it.
    """

    input_size: int = 224
    min_size: int = 1
    fixed_size: bool = False
    batch_norm: bool | None = None
    table: Table | None = None
    classifier: str | None = None
    average_pool: int | None = None
    hidden: int | None = None
    dropout: float | None = None
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD


def smallest_input(table: Iterable[Layer]) -> int:
    """Side of the smallest image that the pools of `table` reduce to one pixel: 2 to the number of pools."""
    return int(2 ** sum(layer == M for layer in table))


def checked_table(layers: Sequence[int | str]) -> Table:
    """`layers` as a table, each entry a positive number of channels or "M".

    Raises:
        ConfigError: empty, a pool first, or an entry that is neither; names its position.
    """
    if not layers:
        raise ConfigError("model.table: empty; give at least one convolution, as in model.table=[64,M,128,M].")
    for position, layer in enumerate(layers):
        if layer != M and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 1):
            raise ConfigError(
                f"model.table: entry {position} is {layer!r}; must be a number of channels or M (max-pool)."
            )
    if layers[0] == M:
        raise ConfigError("model.table: begins with a pool; the first entry must be a convolution's channels.")
    return tuple(layers)  # type: ignore[arg-type]


def registered_models(package: str) -> frozenset[str]:
    """Names of the networks registered in `package`.models, read from its source text so that torch is not imported;
    empty where the package is not installed."""
    spec = importlib.util.find_spec(package)
    folders = [Path(folder) / "models" for folder in (spec.submodule_search_locations or ())] if spec else []
    registered = re.compile(r"^@register_model(?:\(\))?\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    texts = (file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py")))
    return frozenset(name for text in texts for name in registered.findall(text))


def check_dropout_and_size(facts: Facts) -> None:
    """Refuse a dropout that is no probability, and an input too small for the pools.

    Raises:
        ConfigError: names the key and its limit.
    """
    if facts.dropout is not None and not 0 <= facts.dropout < 1:
        raise ConfigError(f"model.dropout={facts.dropout}: must be a probability in [0, 1).")
    if facts.input_size < facts.min_size:
        raise ConfigError(
            f"model.input_size={facts.input_size}: the pools of this network need at least {facts.min_size} pixels. "
            f"Set model.input_size={facts.min_size} or more, or choose a network with fewer pools."
        )
