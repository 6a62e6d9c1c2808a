"""Custom data parts as a user would write them: transforms, sources, a LightningDataModule."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class Speckle:
    """Adds noise from the generators of NumPy and Python."""

    def __init__(self, strength: int = 10) -> None:
        self.strength = strength

    def __call__(self, image: Tensor) -> Tensor:
        noise = np.random.randint(-self.strength, self.strength + 1, image.shape) + random.randint(-2, 2)
        return (image + torch.from_numpy(noise)).clamp(0, 255).to(torch.uint8)


def turned(image: Tensor) -> Tensor:
    """The image rotated by a random multiple of 90 degrees."""
    return torch.rot90(image, int(torch.randint(4, ())), (1, 2))


def stamped(image: Tensor, seed: int, epoch: int, index: int) -> Tensor:
    """The image with the numbers that it was augmented with in its first pixels."""
    image = image.clone()
    image[0, 0, :3] = torch.tensor([seed, epoch, index])
    return image


class Stamped:
    """Writes seed, epoch and index into the first pixels of each image, and counts its batches."""

    batches = 0

    def batch(self, images: Tensor, seed: int, epoch: int, indices: Any) -> Tensor:
        Stamped.batches += 1
        images = images.clone()
        images[:, 0, 0, :2] = torch.tensor([seed, epoch], dtype=torch.uint8, device=images.device)
        images[:, 0, 0, 2] = torch.from_numpy(indices).to(images.device)
        return images


class Halved:
    """Returns half of the images."""

    def batch(self, images: Tensor) -> Tensor:
        return images[::2]


class Digits(LightningDataModule):
    """scikit-learn's digits as 32x32 RGB images; training images are shifted at random while a batch is made."""

    def __init__(
        self, batch_size: int = 16, floats: bool = False, mappings: bool = False, test: bool = True, count: int = 160
    ) -> None:
        super().__init__()
        self.batch_size, self.floats, self.mappings, self.test, self.count = batch_size, floats, mappings, test, count
        self.classes = [str(digit) for digit in range(10)]

    def setup(self, stage: str) -> None:
        scans, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(scans * 15).to(torch.uint8).view(-1, 1, 8, 8).repeat(1, 3, 4, 4)
        images = images / 255 if self.floats else images
        self.everything = TensorDataset(images[: 3 * self.count], torch.from_numpy(labels[: 3 * self.count]))

    def part(self, number: int, *, shuffle: bool) -> Any:
        images, labels = self.everything.tensors
        rows = slice(number * self.count, (number + 1) * self.count)
        dataset = TensorDataset(images[rows], labels[rows])
        return DataLoader(dataset, self.batch_size, shuffle=shuffle, collate_fn=self.shifted if shuffle else self.plain)

    def plain(self, samples: Any) -> Any:
        images, labels = (torch.stack(column) for column in zip(*samples, strict=True))
        return {"image": images, "label": labels} if self.mappings else (images, labels)

    def shifted(self, samples: Any) -> Any:
        by = int(torch.randint(-2, 3, ())) + int(np.random.randint(2)) + random.randint(0, 1)
        return self.plain([(image.roll(by, 2), label) for image, label in samples])

    def train_dataloader(self) -> Any:
        return self.part(0, shuffle=True)

    def val_dataloader(self) -> Any:
        return self.part(1, shuffle=False)

    def test_dataloader(self) -> Any:
        return self.part(2, shuffle=False) if self.test else []


class Nameless(Digits):
    """A LightningDataModule that does not name its classes."""

    def __init__(self) -> None:
        super().__init__()
        del self.classes
