"""The plain loop of the notebooks: a DataLoader of PIL images, fp32, SGD, validation after every epoch.

Every benchmark compares with it, in the same process, on the same data.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from graft.data.augment import Augment
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.splits import Splits
from graft.transfer import TransferPlan

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Timed:
    """How a training went.

    Attributes:
        seconds: all in all.
        accuracy: on the validation images, after the last epoch.
    """

    seconds: float
    accuracy: float


class Pictures(Dataset[tuple[Tensor, int]]):
    """Normalised float images, decoded and transformed one by one."""

    def __init__(self, images: ImageSet, steps: Sequence[Any], preprocessing: Preprocessing) -> None:
        self.images = images
        normalise = transforms.Normalize(list(preprocessing.mean), list(preprocessing.std))
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images.load(index)), int(self.images.labels[index])


def eval_steps(preprocessing: Preprocessing) -> list[Any]:
    """What the notebooks do to a picture for evaluation."""
    return [transforms.Resize(preprocessing.resize_size), transforms.CenterCrop(preprocessing.input_size)]


def train_steps(preprocessing: Preprocessing, augment: Augment) -> list[Any]:
    """What the notebooks do to a picture in training: crops and flips, by PIL."""
    size, ranges, padding = preprocessing.input_size, augment.resized_crop_ranges(), augment.random_crop_padding
    steps = [transforms.RandomResizedCrop(size, **ranges)] if ranges else eval_steps(preprocessing)
    if padding:
        steps.append(transforms.RandomCrop(size, padding, padding_mode="reflect"))
    return [*steps, transforms.RandomHorizontalFlip(augment.horizontal_flip)] if augment.horizontal_flip else steps


def train_plainly(
    network: nn.Module,
    splits: Splits,
    preprocessing: Preprocessing,
    augment: Augment,
    *,
    plan: TransferPlan,
    epochs: int,
    batch_size: int,
    momentum: float,
    workers: int,
    device: torch.device = CPU,
) -> Timed:
    """Train what `plan` trains in the first epoch, at its rates; the rest is frozen by taking no gradient, as in the
    notebooks."""
    started = time.perf_counter()
    train = Pictures(splits.train, train_steps(preprocessing, augment), preprocessing)
    val = Pictures(splits.val, eval_steps(preprocessing), preprocessing)
    loaders = [
        DataLoader(train, batch_size, shuffle=True, num_workers=workers),
        DataLoader(val, batch_size, num_workers=workers),
    ]
    network.to(device)
    plan.apply(0)
    groups = [group | {"params": [p for p in group["params"] if p.requires_grad]} for group in plan.groups]
    optimizer = torch.optim.SGD(groups, momentum=momentum)
    accuracy = 0.0
    for _ in range(epochs):
        _train(network.train(), _moved(loaders[0], device), optimizer)
        accuracy = _validate(network.eval(), _moved(loaders[1], device))
    return Timed(time.perf_counter() - started, accuracy)


def _moved(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    return ((images.to(device), labels.to(device)) for images, labels in batches)


def _train(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    for images, labels in batches:
        optimizer.zero_grad()
        output = network(images)
        parts = [output] if isinstance(output, Tensor) else list(output)  # Inception's auxiliary head counts 0.4
        loss = sum(weight * F.cross_entropy(part, labels) for weight, part in zip((1, 0.4, 0.4), parts, strict=False))
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


@torch.no_grad()
def _validate(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    right = [(network(images).argmax(1) == labels).float() for images, labels in batches]
    return float(torch.cat(right).mean())
