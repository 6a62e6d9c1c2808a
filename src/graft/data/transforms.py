"""Resizing and cropping an image to the integer tensor of a batch; normalisation follows on the device."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from graft.data.bands import Levels
from graft.data.image_format import ImageFormat
from graft.data.preprocessing import Preprocessing, Size

Picture = Image.Image | Levels | Tensor
"""An upright image: a PIL image in RGB, or in another format its levels [H, W, C]; or either as a tensor [C, H, W]."""

Transform = Callable[[Picture], Tensor]

MAX_ASPECT = 16
"""Aspect ratio from which on only the middle of an image is resized: a strip of 100,000 by 1 pixels would be resized to
20 GB, of which the centre crop keeps 150 kB."""


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """The deterministic transform of evaluation: an image → uint8 or uint16 [C, H, W] of the network's input.

    With fit="crop" and a square input it gives the same pixels as torchvision's `ImageClassification` preset before
    normalisation, except for images with an aspect ratio of MAX_ASPECT or more. RGB images are resized by Pillow, those
    of other formats in float32.
    """
    if not preprocessing.image_format.is_rgb:
        return partial(_transformed, preprocessing=preprocessing)
    interpolation = InterpolationMode(preprocessing.interpolation)
    steps: list[v2.Transform] = [v2.Lambda(as_image)]
    if preprocessing.fit == "squash":
        steps.append(v2.Resize(preprocessing.size, interpolation=interpolation, antialias=True))
    else:
        cover = partial(_cover, box=preprocessing.box, interpolation=interpolation)
        steps += [v2.Lambda(middle), v2.Lambda(cover), v2.CenterCrop(preprocessing.size)]
    return v2.Compose([*steps, v2.PILToTensor()])


def _transformed(picture: Picture, preprocessing: Preprocessing) -> Tensor:
    """See `eval_transform`, for the levels of a format other than 8-bit RGB."""
    pixels = as_pixels(picture)
    if preprocessing.fit == "squash":
        return resized(pixels, preprocessing.size, preprocessing.interpolation)
    _, height, width = pixels.shape
    left, top, right, bottom = _middle_box((width, height))
    pixels = pixels[:, top:bottom, left:right]
    size = _covering((bottom - top, right - left), preprocessing.box)
    covering = resized(pixels, size, preprocessing.interpolation)
    cropped: Tensor = functional.center_crop(covering, list(preprocessing.size))
    return cropped


def resized(pixels: Tensor, size: Size, interpolation: str) -> Tensor:
    """Levels [C, H, W] resized with antialiasing in float32, and rounded to the same type."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    resized = functional.resize(pixels.float(), list(size), InterpolationMode(interpolation), antialias=True)
    return resized.round_().clamp_(0, torch.iinfo(pixels.dtype).max).to(pixels.dtype)


def _cover(image: Image.Image, box: Size, interpolation: InterpolationMode) -> Image.Image:
    """The image resized, with its aspect ratio, until it just covers a box; a square as by torchvision's Resize."""
    size = _covering((image.height, image.width), box)
    resized: Image.Image = functional.resize(image, list(size), interpolation, antialias=True)
    return resized


def _covering(size: Size, box: Size) -> Size:
    """Height and width of an image of this size that is enlarged or reduced until it just covers a box."""
    (height, width), (least_height, least_width) = size, box
    if least_height * width >= least_width * height:  # at least as wide as the box: its height decides
        return least_height, max(least_width, least_height * width // height)
    return max(least_height, least_width * height // width), least_width


def as_pixels(picture: Picture) -> Tensor:
    """Pixels of an image, uint8 or uint16 [C, H, W], in channels-last memory format."""
    return picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def pixel_type(image_format: ImageFormat) -> torch.dtype:
    """The type of an image in memory."""
    return torch.uint8 if image_format.bits == 8 else torch.uint16


def for_computing(images: Tensor) -> Tensor:
    """The same levels in a type that every operation on a GPU takes: int32 instead of uint16, which few do."""
    return images.int() if images.is_cuda and images.dtype == torch.uint16 else images


def black(preprocessing: Preprocessing, count: int, device: torch.device | None = None) -> Tensor:
    """Black images [count, C, H, W] of the network's input before normalisation."""
    return torch.zeros(count, *preprocessing.shape, dtype=pixel_type(preprocessing.image_format), device=device)


def noise(preprocessing: Preprocessing, count: int) -> Tensor:
    """The same random images [count, C, H, W] of the network's input before normalisation at each call."""
    image_format = preprocessing.image_format
    generator = torch.Generator().manual_seed(0)
    shape = (count, *preprocessing.shape)
    return torch.randint(image_format.levels + 1, shape, dtype=pixel_type(image_format), generator=generator)


def as_image(picture: Picture) -> Image.Image:
    """A PIL image; the inverse of `as_pixels`."""
    if isinstance(picture, Image.Image):
        return picture
    return Image.fromarray(picture.permute(1, 2, 0).numpy() if isinstance(picture, Tensor) else picture)


def middle(image: Image.Image) -> Image.Image:
    """The middle of an image with an aspect ratio of MAX_ASPECT or more; any other image unchanged."""
    box = _middle_box(image.size)
    return image if box == (0, 0, *image.size) else image.crop(box)


def _middle_box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the middle of an image of this (width, height), see `middle`."""
    short, long = sorted(size)
    if long < MAX_ASPECT * short:
        return 0, 0, *size
    kept = short * MAX_ASPECT // 2
    left, top = (max(0, (side - kept) // 2) for side in size)
    return left, top, left + min(size[0], kept), top + min(size[1], kept)
