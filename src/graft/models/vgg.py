"""VGG from a table of layers (Simonyan & Zisserman 2015), with torchvision's names for its tensors."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from graft.errors import ConfigError, nearest
from graft.models.configurations import CLASSIFIERS, M, checked_table, smallest_input

HIDDEN = 4096


class VGG(nn.Module):
    """Convolutions by `table`, an average pool, a classifier.

    With classifier="vgg" and torchvision's tables, the state dict has torchvision's keys and shapes, and fp32
    outputs equal torchvision's to the bit. Convolutions are initialised from Kaiming's normal distribution (He et
    al. 2015; fan out, ReLU), linear layers from N(0, 0.01), with a larger deviation behind fewer than 4096 hidden
    units, so that the signal keeps its size, biases 0, BatchNorm 1 and 0. Each tensor is initialised once:
    PyTorch's own initialisation is skipped.

    Shapes: images [B, channels, S, S] -> logits [B, num_classes], S >= `smallest_input(table)`; exactly `input_size`
    when there is no average pool.

    Args:
        table: channels of each 3x3 convolution, "M" for a 2x2 max-pool, from input to output.
        num_classes: length of the logits.
        batch_norm: BatchNorm between each convolution and its ReLU (Ioffe & Szegedy 2015).
        classifier: "vgg": three linear layers with ReLU and dropout between; "linear": one on the flattened
            features; "pooled": global average pool, BatchNorm, one linear layer.
        input_size: side of the image in pixels; matters only where there is no average pool.
        average_pool: side of the pooled feature map; None or 0 leaves the map unchanged.
        hidden: width of the two hidden linear layers of classifier="vgg"; None is 4096.
        dropout: probability; None is 0.5 for "vgg" and 0 otherwise.
        channels: of the images.

    Attributes:
        head: names of the modules that are re-initialised for a new set of classes.

    Raises:
        ConfigError: an invalid table, an unknown classifier, or an input smaller than the pools allow.
    """

    def __init__(
        self,
        table: Sequence[int | str],
        *,
        num_classes: int,
        batch_norm: bool = False,
        classifier: str = "vgg",
        input_size: int = 224,
        average_pool: int | None = 7,
        hidden: int | None = None,
        dropout: float | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        table = checked_table(table)
        if classifier not in CLASSIFIERS:
            raise ConfigError(f'model.classifier="{classifier}": no such classifier.{nearest(classifier, CLASSIFIERS)}')
        if classifier == "pooled":
            average_pool = 1
        if not average_pool and input_size < smallest_input(table):
            raise ConfigError(f"model.input_size={input_size}: its pools need at least {smallest_input(table)} pixels.")
        dropout = (0.5 if classifier == "vgg" else 0.0) if dropout is None else dropout
        widths = [int(layer) for layer in table if layer != M]
        side = average_pool or input_size // smallest_input(table)
        width = widths[-1] * side**2
        self.hidden = hidden or HIDDEN
        with torch.device("meta"):
            self.features = _convolutions(table, batch_norm, channels)
            self.avgpool = AveragePool((side, side)) if average_pool else nn.Identity()
            self.classifier, self.head = _classifier(classifier, (width, self.hidden), num_classes, dropout)
        self.to_empty(device=torch.get_default_device())
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialise every tensor from torch's global generator, from input to output."""
        for module in self.modules():
            reset_vgg_layer(module)
            if isinstance(module, nn.Linear) and module.in_features == self.hidden != HIDDEN:
                module.weight.mul_((HIDDEN / self.hidden) ** 0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised images [B, channels, H, W]."""
        maps = self.avgpool(self.features(images))
        return self.classifier(torch.flatten(maps, 1))


class AveragePool(nn.AdaptiveAvgPool2d):
    """As in torch, but a map that already has the output size, as with images of 224 pixels, is returned unchanged.

    That is equal to the bit, and its gradient works on a GPU under `trainer.deterministic`, where torch's has none.
    """

    def forward(self, maps: Tensor) -> Tensor:
        return maps if maps.shape[-2:] == self.output_size else super().forward(maps)


def reset_vgg_layer(module: nn.Module) -> None:
    """Initialise one layer as a VGG's layers are; modules of other kinds are left unchanged."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
        module.reset_parameters()


def _convolutions(table: Sequence[int | str], batch_norm: bool, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = channels
    for layer in table:
        if layer == M:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        outputs = int(layer)
        layers.append(nn.Conv2d(inputs, outputs, kernel_size=3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
        inputs = outputs
    return nn.Sequential(*layers)


def _classifier(
    kind: str, widths: tuple[int, int], num_classes: int, dropout: float
) -> tuple[nn.Sequential, tuple[str, ...]]:
    """The layers from flattened features to logits, and the names of those in the head."""
    width, hidden = widths
    if kind == "vgg":
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((width, hidden, hidden)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Linear(hidden, num_classes)), (f"classifier.{len(layers)}",)
    if kind == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes)), ("classifier.1",)
    pooled = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, num_classes))
    return pooled, ("classifier.0", "classifier.2")
