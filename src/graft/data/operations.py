"""Colour and shape operations on batches, with one magnitude per image.

The result for an image does not depend on the batch, because sums are of integers and everything else is elementwise.
They equal torchvision's kernels up to one grey level, and do not synchronise with the GPU.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.transforms.v2 import functional

from graft.data.draws import Operations
from graft.data.preprocessing import Size

ToDevice = Callable[[npt.NDArray[np.generic]], Tensor]
"""Copies an array to the device of the images."""

_GREY = (0.2989, 0.587, 0.114)


def apply(
    images: Tensor, steps: Sequence[Operations], interpolation: str, to_device: ToDevice, *, colours: bool = True
) -> Tensor:
    """Apply one operation per image and step to `images`, uint8 or uint16 [B, H, W, C], which may be modified.

    Without `colours`, as for images other than 8-bit RGB, only brightness, contrast, and those of the shape.
    """
    groups = [group for step in steps for group in _groups(step, (images.shape[1], images.shape[2]))]
    if not colours:
        groups = [group for group in groups if group[0] in ANY_FORMAT]
    if not groups:
        return images
    rows = to_device(np.concatenate([rows for _, rows, _ in groups]))
    numbers = to_device(np.concatenate([numbers for _, _, numbers in groups]))
    start = 0
    for kind, chosen, _ in groups:
        part = slice(start, start + len(chosen))
        start += len(chosen)
        group = images if len(chosen) == len(images) else images.index_select(0, rows[part])
        if kind == _AFFINE:
            changed = affine(group.permute(0, 3, 1, 2), numbers[part], interpolation)
        else:
            changed = _KERNELS[kind](group.permute(0, 3, 1, 2), numbers[part, :1, None, None])
        changed = changed.permute(0, 2, 3, 1)
        if group is images:
            images = changed
        else:
            _signed(images).index_copy_(0, rows[part], _signed(changed))
    return images.contiguous()


def _signed(images: Tensor) -> Tensor:
    """The same memory as a type that torch can copy by index, which it cannot with uint16."""
    return images.view(torch.int16) if images.dtype == torch.uint16 else images


def _groups(step: Operations, size: Size) -> list[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """(kind, rows, numbers [n, 6]) of each kind of operation in a step.

    The numbers are an affine map, or the magnitude and zeros.
    """
    kinds = [_AFFINE if name in _MAPS else name for name in step.names]
    groups = []
    for kind in sorted(set(kinds) - {"Identity"}):
        rows = np.array([row for row, each in enumerate(kinds) if each == kind], dtype=np.int64)
        numbers = np.zeros((len(rows), 6), dtype=np.float32)
        if kind == _AFFINE:
            numbers[:] = [_MAPS[step.names[row]](float(step.magnitudes[row]), *size) for row in rows]
        else:
            numbers[:, 0] = step.magnitudes[rows]
        groups.append((kind, rows, numbers))
    return groups


def _rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return cosine, -sine, 0, sine, cosine, 0


_AFFINE = "Affine"
_MAPS: dict[str, Callable[[float, int, int], tuple[float, ...]]] = {
    "ShearX": lambda slope, height, width: (1, slope, slope * height / 2, 0, 1, 0),  # about the corner
    "ShearY": lambda slope, height, width: (1, 0, 0, slope, 1, slope * width / 2),
    "TranslateX": lambda pixels, height, width: (1, 0, -math.trunc(pixels), 0, 1, 0),
    "TranslateY": lambda pixels, height, width: (1, 0, 0, 0, 1, -math.trunc(pixels)),
    "Rotate": _rotation,
}
"""Affine map (xx, xy, x0, yx, yy, y0) from an output pixel to its source, in pixels from the centre."""


def affine(images: Tensor, maps: Tensor, interpolation: str) -> Tensor:
    """Images whose pixels are taken from where `maps` [n, 6] point to; black outside."""
    height, width = images.shape[-2:]
    rows, columns = (  # from -1 to 1
        torch.arange(1 - side, side, 2, dtype=torch.float32, device=images.device) / side for side in (height, width)
    )
    rows = rows[:, None]
    xx, xy, x0, yx, yy, y0 = maps[:, :, None, None].unbind(1)
    xs = (xx * columns + x0 * (2 / width)) + xy * (height / width) * rows
    ys = (yx * (width / height) * columns + y0 * (2 / height)) + yy * rows
    grid = torch.stack((xs, ys), -1)
    planes = images.contiguous().float()
    sampled = grid_sample(planes, grid, mode=interpolation, padding_mode="zeros", align_corners=False).round_()
    if interpolation == "bicubic":
        sampled.clamp_(0, torch.iinfo(images.dtype).max)
    return sampled.to(images.dtype)


def brightness(images: Tensor, change: Tensor) -> Tensor:
    """Multiply grey levels by 1 + change."""
    return (images.float() * (1 + change)).clamp_(0, torch.iinfo(images.dtype).max).to(images.dtype)


def saturation(images: Tensor, change: Tensor) -> Tensor:
    """Move colours away from grey, or towards it where `change` is negative."""
    return _blend(images, _grey(images), change)


def contrast(images: Tensor, change: Tensor) -> Tensor:
    """Move grey levels away from the mean grey, or towards it where `change` is negative."""
    grey = _grey(images) if images.shape[1] == 3 else images.long().sum(1, keepdim=True) // images.shape[1]
    total = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)
    return _blend(images, (total / images[0, 0].numel()).float(), change)


def hue(images: Tensor, change: Tensor) -> Tensor:
    """Rotate hues by the fraction `change` of the colour circle."""
    red, green, blue = (images.float() * (1 / 255)).unbind(1)
    low, high = torch.stack((red, green, blue), 1).aminmax(dim=1)
    range_ = high - low
    divisor = range_ + (range_ == 0)
    sixth = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    corners = torch.arange(5, 0, -2, dtype=torch.float32, device=images.device)[:, None, None]  # of red, green, blue
    position = (sixth[:, None] + change * 6 + corners).remainder_(6)
    share = torch.minimum(position, 4 - position).clamp_(0, 1)
    return ((high[:, None] - range_[:, None] * share) * 255.999).clamp_(0, 255).to(torch.uint8)


def sharpness(images: Tensor, change: Tensor) -> Tensor:
    """Move away from the blurred image, or towards it where `change` is negative; border pixels are unchanged."""
    if min(images.shape[-2:]) <= 2:
        return images
    whole = images.to(torch.int32)
    rows = whole[:, :, :-2] + whole[:, :, 1:-1] + whole[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    middle = whole[..., 1:-1, 1:-1]
    blurred = ((around + 4 * middle) / 13).round_()
    changed = images.clone()
    changed[..., 1:-1, 1:-1] = (middle - (blurred - middle) * change).clamp_(0, 255).to(torch.uint8)
    return changed


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep only the highest `bits` bits of each grey level."""
    return images & (256 - torch.exp2(8 - bits)).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert grey levels from `threshold`, a fraction of 255, on."""
    return torch.where(images >= threshold * 255, 255 - images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    low, high = (each.float() for each in images.flatten(2).aminmax(dim=2, keepdim=True))
    low, range_ = low[..., None], (high - low)[..., None]
    stretched = (images - low) / (range_ * (1 / 255) + (range_ == 0))
    return torch.where(range_ > 0, stretched.clamp_(0, 255).to(torch.uint8), images)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Equalise the histogram of each channel."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")  # deterministic, because it counts integers
    try:
        return functional.equalize(images)
    finally:
        torch.set_deterministic_debug_mode(mode)


def invert(images: Tensor, _: Tensor) -> Tensor:
    """Subtract each grey level from 255."""
    return 255 - images


def _grey(images: Tensor) -> Tensor:
    red, green, blue = (images[:, channel : channel + 1].float() * weight for channel, weight in enumerate(_GREY))
    return (red + green + blue).floor_()


def _blend(images: Tensor, other: Tensor, change: Tensor) -> Tensor:
    # no fused multiply-add: its rounding depends on the kernel, and so on the batch
    mixed = images.float() * (1 + change) + other * -change
    return mixed.clamp_(0, torch.iinfo(images.dtype).max).to(images.dtype)


ANY_FORMAT = frozenset({_AFFINE, "Brightness", "Contrast"})
"""Kinds of operations for images of any number of channels and bits."""

_KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": brightness,
    "Color": saturation,
    "Contrast": contrast,
    "Hue": hue,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
}
