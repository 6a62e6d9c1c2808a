"""Normalisation of images on the device, from integer levels to floats."""

import torch
from torch import Tensor, nn

from graft.data.preprocessing import Preprocessing
from graft.data.transforms import pixel_type


class Normalise(nn.Module):
    """Integer images [B, C, H, W] to float32: minus mean, divided by std; floating-point images pass unchanged.

    Args:
        preprocessing: mean and std of values in [0, 1], and the highest level of the images, 255 or 65535.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        levels = preprocessing.image_format.levels
        self.dtype = pixel_type(preprocessing.image_format)
        scale = torch.tensor(preprocessing.std) * levels
        self.register_buffer("mean", (torch.tensor(preprocessing.mean) * levels).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("inverse_std", (1 / scale).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.is_floating_point():  # of a LightningDataModule that normalises itself
            return images.to(torch.promote_types(torch.float32, self.mean.dtype))
        return (images.float() - self.mean) * self.inverse_std

    def undone(self, images: Tensor) -> Tensor:
        """The inverse, rounded: floats [B, C, H, W] to levels."""
        levels = (images / self.inverse_std + self.mean).round()
        return levels.clamp(0, torch.iinfo(self.dtype).max).to(self.dtype)


def is_channels_last(network: nn.Module) -> bool:
    """Whether the convolutions of `network` are in channels-last memory format, which their input should have too."""
    first = next((p for p in network.parameters() if p.dim() == 4), None)
    return first is not None and first.is_contiguous(memory_format=torch.channels_last)
