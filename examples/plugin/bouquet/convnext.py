"""A network: a small ConvNeXt for images of 32 pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position, [B, C, H, W] to [B, C, H, W]."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7 convolution, then a two-layer perceptron at each position, added to the input.

    Args:
        channels: of input and output, [B, C, H, W].
        layer_scale: initial factor of what is added to the input.
    """

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = ChannelNorm(channels, eps=1e-6)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.project = nn.Conv2d(4 * channels, channels, 1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), layer_scale))

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.expand(self.norm(self.depthwise(images))))
        return images + self.scale * self.project(hidden)


class SmallConvNeXt(nn.Module):
    """ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s") with a 2x2 stem and three stages.

    Graft calls it with `num_classes`, and with the other keys of the group `model`. The three attributes `head`,
    `stages` and `preprocessing` are optional: without them Graft takes the last linear layer as the head, finds stages
    by the network's containers, and prepares images as for ImageNet at 224 pixels.

    Args:
        num_classes: length of the logits.
        width: channels of the first stage; each following one has twice as many.
        depths: number of blocks in each stage.
        layer_scale: initial factor of a block's residual branch.

    Shapes: images [B, 3, S, S], normalised -> logits [B, num_classes].
    """

    head = ("classifier",)
    """Names of the modules that compute the logits: re-initialised for new classes."""

    preprocessing = {"input_size": 32, "resize_size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # noqa: RUF012
    """What is done to an image; read from the class, before the network is built."""

    def __init__(
        self, num_classes: int, width: int = 24, depths: Sequence[int] = (1, 1, 1), layer_scale: float = 0.1
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 2, stride=2), ChannelNorm(width, eps=1e-6))
        parts, channels = [], width
        for number, depth in enumerate(depths):
            blocks = [Block(channels, layer_scale) for _ in range(depth)]
            down = (
                [] if number == 0 else [ChannelNorm(channels // 2, eps=1e-6), nn.Conv2d(channels // 2, channels, 2, 2)]
            )
            parts.append(nn.Sequential(*down, *blocks))
            channels *= 2
        self.trunk = nn.Sequential(*parts)
        self.norm = nn.LayerNorm(channels // 2, eps=1e-6)
        self.classifier = nn.Linear(channels // 2, num_classes)
        # From input to output: what freezing and learning rates refer to. Each parameter is in exactly one stage.
        self.stages = {"stem": ["stem"], **{f"stage{i + 1}": [f"trunk.{i}"] for i in range(len(depths))}}
        self.stages["head"] = ["norm", "classifier"]

    def forward(self, images: Tensor) -> Tensor:
        features = self.trunk(self.stem(images)).mean((2, 3))
        return self.classifier(self.norm(features))
