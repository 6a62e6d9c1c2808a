"""Resizing and cropping an image to the uint8 tensor of a batch; normalisation follows on the device."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from graft.data.preprocessing import Preprocessing

Picture = Image.Image | Tensor
"""An upright RGB image: a PIL image, or its pixels, uint8 [3, H, W]."""

Transform = Callable[[Picture], Tensor]

MAX_ASPECT = 16
"""Aspect ratio from which on only the middle of an image is resized: a strip of 100,000 by 1 pixels would be resized to
20 GB, of which the centre crop keeps 150 kB."""


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """The deterministic transform of evaluation: an image → uint8 [3, S, S].

    With fit="crop" it gives the same pixels as torchvision's `ImageClassification` preset before normalisation, except
    for images with an aspect ratio of MAX_ASPECT or more.
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
    """Pixels of an image, uint8 [3, H, W], in channels-last memory format."""
    return picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def as_image(picture: Picture) -> Image.Image:
    """A PIL image; the inverse of `as_pixels`."""
    return Image.fromarray(picture.permute(1, 2, 0).numpy()) if isinstance(picture, Tensor) else picture


def middle(image: Image.Image) -> Image.Image:
    """The middle of an image with an aspect ratio of MAX_ASPECT or more; any other image unchanged."""
    short, long = sorted(image.size)
    if long < MAX_ASPECT * short:
        return image
    kept = short * MAX_ASPECT // 2
    left, top = (max(0, (side - kept) // 2) for side in image.size)
    return image.crop((left, top, left + min(image.width, kept), top + min(image.height, kept)))
