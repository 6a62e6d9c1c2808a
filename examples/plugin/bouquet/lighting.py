"""An augmentation: change the colour of the light."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

DIRECTIONS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
"""Principal components of the RGB values of ImageNet, one per column."""

STRENGTHS = torch.tensor([0.2175, 0.0188, 0.0045])
"""Their standard deviations, for values in [0, 1]."""


class Lighting(v2.Transform):
    """Add a random multiple of each principal colour component (Krizhevsky et al. 2012, section 4.1).

    Any torchvision v2 transform, or a function of one image, is an augmentation. It is called with a uint8 tensor
    [3, S, S]. What it draws from torch's global generator is the same for the same (seed, epoch, image), however many
    workers load the images.

    Args:
        std: standard deviation of the multiples; the paper has 0.1.

    Raises:
        ValueError: `std` is negative.
    """

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        if std < 0:
            raise ValueError(f"std={std}: must be at least 0")
        self.std = std

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"shift": DIRECTIONS @ (STRENGTHS * torch.randn(3) * self.std)}

    def transform(self, image: Tensor, params: dict[str, Any]) -> Tensor:
        shifted = image + 255 * params["shift"].view(3, 1, 1)
        return shifted.round().clamp(0, 255).to(image.dtype)
