"""Views of test-time augmentation: the image shifted by a pixel or more (Jordan 2024)."""

import torch
from torch import Tensor


def shifts(images: Tensor) -> list[Tensor]:
    """The images [B, 3, S, S], S >= 2, shifted by S / 32 pixels up and left, and down and right; borders reflect."""
    size = images.shape[3]
    pixels = torch.arange(size, device=images.device)
    step = max(1, round(size / 32))
    sources = [(pixels - step).abs(), size - 1 - (size - 1 - pixels - step).abs()]
    return [images[:, :, source][:, :, :, source] for source in sources]


def hflip_shifts(images: Tensor) -> list[Tensor]:
    """The two views of `shifts`, mirrored left to right."""
    return [shifted.flip(3) for shifted in shifts(images)]
