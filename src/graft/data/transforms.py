"""From a picture to the uint8 tensor a batch holds; normalisation comes later, on the device."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from graft.data.preprocessing import Preprocessing

Picture = Image.Image | Tensor
"""Upright RGB: decoded by PIL, or its pixels, uint8 [3, H, W]."""

Transform = Callable[[Picture], Tensor]

LONGEST = 16
"""Of a picture so many times as long as its short side, and more, the middle alone is resized: enlarged with all the
rest, a strip of 100,000 by 1 pixels would take 20 GB, of which the centre crop keeps 150 kB."""


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """What evaluation does: a picture → uint8 [3, S, S]; no chance in it.

    With fit="crop" the same pixels as torchvision's `ImageClassification` preset before it normalises, but for pictures
    LONGEST times as long as wide.
    """
    interpolation = InterpolationMode(preprocessing.interpolation)
    size = preprocessing.input_size
    steps: list[v2.Transform] = [v2.Lambda(as_image)]
    if preprocessing.fit == "squash":
        steps.append(v2.Resize([size, size], interpolation=interpolation, antialias=True))
    else:
        steps += [
            v2.Lambda(middle),
            v2.Resize(preprocessing.resize_size, interpolation=interpolation, antialias=True),
            v2.CenterCrop(size),
        ]
    return v2.Compose([*steps, v2.PILToTensor()])


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
