"""From a picture to the uint8 tensor a batch holds; normalisation comes later, on the device."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from graft.data.augment import Augment
from graft.preprocessing import Preprocessing

Picture = Image.Image | Tensor
"""Upright RGB: decoded by PIL, or its pixels, uint8 [3, H, W]."""

Transform = Callable[[Picture], Tensor]

_HUE_OF_JITTER = 0.25  # Chen et al. 2020 (SimCLR): hue changes a quarter as much as the rest

LONGEST = 16
"""Of a picture so many times as long as its short side, and more, the middle alone is resized: enlarged with all the
rest, a strip of 100,000 by 1 pixels would take 20 GB, of which the centre crop keeps 150 kB."""

_POLICIES: dict[str, Callable[[InterpolationMode], v2.Transform]] = {
    "trivial": lambda interpolation: v2.TrivialAugmentWide(interpolation=interpolation),
    "rand": lambda interpolation: v2.RandAugment(interpolation=interpolation),
    "auto": lambda interpolation: v2.AutoAugment(interpolation=interpolation),
}


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """What evaluation does: a picture → uint8 [3, S, S]; no chance in it.

    With fit="crop" the same pixels as torchvision's `ImageClassification` preset before it normalises, but for pictures
    LONGEST times as long as wide.
    """
    return v2.Compose([*_fit(preprocessing), v2.PILToTensor()])


def train_transform(preprocessing: Preprocessing, augment: Augment) -> Transform:
    """What training does: a picture → uint8 [3, S, S]; draws only from torch's global generator. Flips that alternate
    from epoch to epoch are the data set's.

    Random crops are resized by torchvision, not by PIL: three times as fast, and at most one grey level apart (bicubic:
    two).
    """
    size, interpolation = preprocessing.input_size, InterpolationMode(preprocessing.interpolation)
    ranges = augment.resized_crop_ranges()
    steps: list[v2.Transform] = (
        [v2.Lambda(as_pixels), v2.RandomResizedCrop(size, interpolation=interpolation, **ranges)]
        if ranges
        else [*_fit(preprocessing), v2.PILToTensor()]
    )
    if augment.random_crop_padding:
        steps.append(v2.RandomCrop(size, padding=augment.random_crop_padding, padding_mode="reflect"))
    if augment.horizontal_flip and not augment.alternate_flips:  # those depend on the epoch
        steps.append(v2.RandomHorizontalFlip(augment.horizontal_flip))
    if augment.vertical_flip:
        steps.append(v2.RandomVerticalFlip(augment.vertical_flip))
    if augment.policy is not None:
        steps.append(_POLICIES[augment.policy](interpolation))
    if augment.color_jitter:
        strength = augment.color_jitter
        steps.append(v2.ColorJitter(strength, strength, strength, min(0.5, strength * _HUE_OF_JITTER)))
    if augment.random_erasing:
        steps.append(v2.RandomErasing(augment.random_erasing, value=list(preprocessing.mean_colour)))
    return v2.Compose(steps)


def _fit(preprocessing: Preprocessing) -> list[v2.Transform]:
    interpolation = InterpolationMode(preprocessing.interpolation)
    size = preprocessing.input_size
    if preprocessing.fit == "squash":
        return [v2.Lambda(as_image), v2.Resize([size, size], interpolation=interpolation, antialias=True)]
    return [
        v2.Lambda(as_image),
        v2.Lambda(middle),
        v2.Resize(preprocessing.resize_size, interpolation=interpolation, antialias=True),
        v2.CenterCrop(size),
    ]


def as_pixels(picture: Picture) -> Tensor:
    """uint8 [3, H, W], which lies as [H, W, 3] in memory, as decoded."""
    return picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def as_image(picture: Picture) -> Image.Image:
    """The inverse of `as_pixels`."""
    return Image.fromarray(picture.permute(1, 2, 0).numpy()) if isinstance(picture, Tensor) else picture


def middle(image: Image.Image) -> Image.Image:
    """`image`, or where it is LONGEST times as long as its short side, its middle, half as long as that."""
    short, long = sorted(image.size)
    if long < LONGEST * short:
        return image
    kept = short * LONGEST // 2
    left, top = (max(0, (side - kept) // 2) for side in image.size)
    return image.crop((left, top, left + min(image.width, kept), top + min(image.height, kept)))
