"""What a user writes in a package of their own for data: transforms, sources, a LightningDataModule."""

import random

import numpy as np
import torch
from torch import Tensor


class Speckle:
    """Adds noise from the generators of NumPy and Python."""

    def __init__(self, strength: int = 10) -> None:
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        noise = np.random.randint(-self.strength, self.strength + 1, image.shape) + random.randint(-2, 2)
        return (image + torch.from_numpy(noise)).clamp(0, 255).to(torch.uint8)


def turned(image: Tensor) -> Tensor:
    """The image, turned by a random multiple of 90 degrees."""
    return torch.rot90(image, int(torch.randint(4, ())), (1, 2))


def stamped(image: Tensor, seed: int, epoch: int, index: int) -> Tensor:
    """The image with the numbers that it was augmented with in its first pixels."""
    image = image.clone()
    image[0, 0, :3] = torch.tensor([seed, epoch, index])
    return image
