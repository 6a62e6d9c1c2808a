"""Resizing and cropping an image to the uint8 tensor of a batch; normalisation follows on the device."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from graft.data.preprocessing import Preprocessing, Size

Picture = Image.Image | Tensor
"""An upright RGB image: a PIL image, or its pixels, uint8 [3, H, W]."""

Transform = Callable[[Picture], Tensor]

MAX_ASPECT = 16
"""Aspect ratio from which on only the middle of an image is resized: a strip of 100,000 by 1 pixels would be resized to
20 GB, of which the centre crop keeps 150 kB."""


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """The deterministic transform of evaluation: an image → uint8 [3, H, W] of the network's input.

    With fit="crop" and a square input it gives the same pixels as torchvision's `ImageClassification` preset before
    normalisation, except for images with an aspect ratio of MAX_ASPECT or more.
    """
    interpolation = InterpolationMode(preprocessing.interpolation)
    steps: list[v2.Transform] = [v2.Lambda(as_image)]
    if preprocessing.fit == "squash":
        steps.append(v2.Resize(preprocessing.size, interpolation=interpolation, antialias=True))
    else:
        cover = partial(_cover, box=preprocessing.box, interpolation=interpolation)
        steps += [v2.Lambda(middle), v2.Lambda(cover), v2.CenterCrop(preprocessing.size)]
    return v2.Compose([*steps, v2.PILToTensor()])


def _cover(image: Image.Image, box: Size, interpolation: InterpolationMode) -> Image.Image:
    """The image resized, with its aspect ratio, until it just covers a box; a square as by torchvision's Resize."""
    (height, width), (least_height, least_width) = (image.height, image.width), box
    if least_height * width >= least_width * height:  # at least as wide as the box: its height decides
        size = [least_height, max(least_width, least_height * width // height)]
    else:
        size = [max(least_height, least_width * height // width), least_width]
    resized: Image.Image = functional.resize(image, size, interpolation, antialias=True)
    return resized


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
