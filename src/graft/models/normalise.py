"""Normalisation of images on the device, from bytes to floats."""

import torch
from torch import Tensor, nn

from graft.data.preprocessing import Preprocessing


class Normalise(nn.Module):
    """uint8 images [B, 3, H, W] to float32: minus mean, divided by std; floating-point images pass unchanged."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        scale = torch.tensor(preprocessing.std) * 255
        self.register_buffer("mean", (torch.tensor(preprocessing.mean) * 255).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("inverse_std", (1 / scale).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.is_floating_point():  # of a LightningDataModule that normalises itself
            return images.to(torch.promote_types(torch.float32, self.mean.dtype))
        return (images.float() - self.mean) * self.inverse_std

    def undone(self, images: Tensor) -> Tensor:
        """The inverse, rounded: floats [B, 3, H, W] to uint8."""
        return (images / self.inverse_std + self.mean).round().clamp(0, 255).to(torch.uint8)


def is_channels_last(network: nn.Module) -> bool:
    """Whether the convolutions of `network` are in channels-last memory format, which their input should have too."""
    first = next((p for p in network.parameters() if p.dim() == 4), None)
    return first is not None and first.is_contiguous(memory_format=torch.channels_last)
