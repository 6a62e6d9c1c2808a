"""Images of any number of channels and bits as RGB pictures, to look at."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.bands import Levels

CUT = 2.0
"""Percentage of the darkest and of the brightest levels of a channel that a stretched picture cuts off."""


def visible(pixels: Levels) -> npt.NDArray[np.uint8]:
    """The levels of an image as a picture, uint8 [H, W, 3]; 8-bit RGB unchanged.

    Of more than three channels the first three are red, green and blue; one is grey, of two the first. 16-bit levels
    are stretched from the 2nd to the 98th percentile of each channel, because most sensors use a part of the range.
    """
    levels = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
    if levels.dtype == np.uint8:
        shown: npt.NDArray[np.uint8] = levels.astype(np.uint8, copy=False)
    else:
        low, high = np.percentile(levels, [CUT, 100 - CUT], axis=(0, 1))
        stretched = (levels - low) * (255 / np.maximum(high - low, 1))
        shown = np.rint(stretched).clip(0, 255).astype(np.uint8)
    return np.broadcast_to(shown, (*shown.shape[:2], 3)) if shown.shape[-1] == 1 else shown


def as_picture(image: Image.Image | Levels) -> Image.Image:
    """An image as `ImageSet.load` returns it, as an RGB picture to look at."""
    return image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(visible(image)))
