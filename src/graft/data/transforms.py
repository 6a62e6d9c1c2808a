"""From a PIL image to the uint8 tensor a batch holds; normalisation comes later, on the device."""

from collections.abc import Callable

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from graft.data.augment import Augment
from graft.preprocessing import Preprocessing

Transform = Callable[[Image.Image], torch.Tensor]

_HUE_OF_JITTER = 0.25  # Chen et al. 2020 (SimCLR): hue changes a quarter as much as the rest

_POLICIES: dict[str, Callable[[InterpolationMode], v2.Transform]] = {
    "trivial": lambda interpolation: v2.TrivialAugmentWide(interpolation=interpolation),
    "rand": lambda interpolation: v2.RandAugment(interpolation=interpolation),
    "auto": lambda interpolation: v2.AutoAugment(interpolation=interpolation),
}


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """What evaluation does: RGB PIL → uint8 [3, S, S]; no chance in it.

    With fit="crop" the same pixels as torchvision's `ImageClassification` preset before it normalises.
    """
    return v2.Compose([*_fit(preprocessing), v2.PILToTensor()])


def train_transform(preprocessing: Preprocessing, augment: Augment) -> Transform:
    """What training does: RGB PIL → uint8 [3, S, S]; draws only from torch's global generator."""
    size, interpolation = preprocessing.input_size, InterpolationMode(preprocessing.interpolation)
    ranges = augment.resized_crop_ranges()
    steps: list[v2.Transform] = (
        [v2.RandomResizedCrop(size, interpolation=interpolation, **ranges)] if ranges else _fit(preprocessing)
    )
    steps.append(v2.PILToTensor())
    if augment.random_crop_padding:
        steps.append(v2.RandomCrop(size, padding=augment.random_crop_padding, padding_mode="reflect"))
    if augment.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(augment.horizontal_flip))
    if augment.vertical_flip:
        steps.append(v2.RandomVerticalFlip(augment.vertical_flip))
    if augment.policy is not None:
        steps.append(_POLICIES[augment.policy](interpolation))
    if augment.color_jitter:
        strength = augment.color_jitter
        steps.append(v2.ColorJitter(strength, strength, strength, min(0.5, strength * _HUE_OF_JITTER)))
    if augment.random_erasing:
        mean_colour = [round(255 * channel) for channel in preprocessing.mean]
        steps.append(v2.RandomErasing(augment.random_erasing, value=mean_colour))
    return v2.Compose(steps)


def _fit(preprocessing: Preprocessing) -> list[v2.Transform]:
    interpolation = InterpolationMode(preprocessing.interpolation)
    size = preprocessing.input_size
    if preprocessing.fit == "squash":
        return [v2.Resize([size, size], interpolation=interpolation, antialias=True)]
    return [
        v2.Resize(preprocessing.resize_size, interpolation=interpolation, antialias=True),
        v2.CenterCrop(size),
    ]
