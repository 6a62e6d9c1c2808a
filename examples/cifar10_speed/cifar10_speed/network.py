"""A VGG that learns small images in a few seconds (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU").

Its 3x3 convolutions and its pools are a VGG's. The rest saves epochs: the first layer whitens and is computed, not
learned; the other convolutions are initialised as the identity; BatchNorm learns shifts only, at a high rate.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (64, 256, 256)
"""Channels of the blocks."""

SHIFT_GAIN = 8.0
RUNNING = 0.4
"""Weight of each batch in the running mean and variance, high because there are few epochs."""

LOGIT_SCALE = 1 / 9
EPSILON = 5e-4
"""Added to the variances that whitening divides by, as in the source."""


class VGGSpeed(nn.Module):
    """Whitening, three blocks (convolution, pool, norm, GELU, convolution, norm, GELU), the maximum of the map, one
    linear layer: 2.0 million parameters, 0.24 GFLOP for an image of 32 pixels.

    Convolutions have no bias; each is initialised as the identity on its input channels, the rest as `nn.Conv2d`
    is (Jordan 2024, section 3.2).

    Shapes: images [B, 3, S, S] -> logits [B, num_classes], S >= 9.

    Attributes:
        head, stages, preprocessing: what Graft reads of a custom network (graft.models.families.custom.CustomNetwork).
    """

    head = ("classifier.linear",)
    stages: ClassVar[Mapping[str, Sequence[str]]] = {
        "block1": ("features.whitening", "features.act", "features.block1"),
        "block2": ("features.block2",),
        "block3": ("features.block3",),
        "head": ("classifier",),
    }
    preprocessing: ClassVar[Mapping[str, object]] = {
        "input_size": 32,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    }

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        whitening = Whitening()
        parts: list[tuple[str, nn.Module]] = [("whitening", whitening), ("act", nn.GELU())]
        channels = whitening.channels
        for number, width in enumerate(WIDTHS, start=1):
            parts.append((f"block{number}", _block(channels, width)))
            channels = width
        self.features = nn.Sequential(OrderedDict(parts))
        linear = nn.Linear(channels, num_classes, bias=False)
        self.classifier = nn.Sequential(OrderedDict(linear=linear, scale=Scale(LOGIT_SCALE)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, 3, S, S]."""
        maps = self.features(images)
        # the adaptive pool's gradient has no deterministic kernel on a GPU
        return self.classifier(torch.flatten(F.max_pool2d(maps, maps.shape[-2:]), 1))

    def fit_to(self, images: Tensor) -> None:
        """Compute the whitening from a few thousand normalised training images [N, 3, S, S]."""
        self.features.whitening.fit_to(images)  # type: ignore[union-attr, operator]


class Whitening(nn.Module):
    """Projections of 2x2 patches on their principal directions, each scaled to variance 1, and their negatives
    (Page 2019, "How to train your ResNet"); then a learned shift.

    Shapes: [B, 3, S, S] -> [B, 24, S - 1, S - 1].
    """

    weight: Tensor
    side = 2

    def __init__(self) -> None:
        super().__init__()
        size = 3 * self.side**2
        self.channels = 2 * size
        directions = torch.eye(size).view(size, 3, self.side, self.side)
        self.register_buffer("weight", torch.cat([directions, -directions]))
        self.bias = nn.Parameter(torch.zeros(self.channels))

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight, self.bias)

    @torch.no_grad()
    def fit_to(self, images: Tensor) -> None:
        """Set the kernels that whiten the patches of these normalised images [N, 3, S, S]."""
        patches = F.unfold(images.float(), self.side).transpose(1, 2).flatten(0, 1).double()  # [N (S - 1)^2, 12]
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (directions / (variances + EPSILON).sqrt()).T.flip(0).reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([kernels, -kernels]))


class ShiftNorm(nn.BatchNorm2d):
    """BatchNorm that learns a shift and no scale.

    The shift is SHIFT_GAIN times its parameter: SGD then moves it SHIFT_GAIN squared, 64, times as fast, without
    more weight decay (Page 2019 does the same with a separate parameter group).
    """

    scale: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, variance, shift = self.running_mean, self.running_var, self.bias * SHIFT_GAIN
        return F.batch_norm(maps, mean, variance, self.scale, shift, self.training, RUNNING, self.eps)


class Scale(nn.Module):
    """Logits times a constant, which keeps the first gradients small."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=_convolution(inputs, outputs),
            pool=nn.MaxPool2d(2),
            norm1=ShiftNorm(outputs),
            act1=nn.GELU(),
            conv2=_convolution(outputs, outputs),
            norm2=ShiftNorm(outputs),
            act2=nn.GELU(),
        )
    )


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(layer.weight[:inputs])
    return layer
