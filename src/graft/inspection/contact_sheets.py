"""Contact sheets: thumbnails of the images of a class, with the areas that the crop cuts off dimmed."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from graft.data.display import as_picture
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.reading import opened, to_rgb
from graft.errors import UnreadableImage
from graft.inspection.dataset import visible

CELL, GAP, COLUMNS, LINE = 128, 4, 8, 20
"""Side of a thumbnail and gap between thumbnails, in pixels; thumbnails per row; height of a heading, in pixels."""

DIMMED = 0.35
"""Brightness factor of the areas that the crop cuts off."""


def evenly(indices: Sequence[int], most: int) -> list[int]:
    """At most `most` of `indices`, evenly spaced from the first to the last."""
    positions = np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int))
    return [indices[position] for position in positions.tolist()]


def contact_sheet(
    images: ImageSet, parts: Mapping[str, Sequence[int]], preprocessing: Preprocessing, most: int
) -> Image.Image:
    """Thumbnails of some images of one class, by split.

    Args:
        images: the images.
        parts: name of each split (in ASCII) -> indices of its readable images.
        preprocessing: its crop determines which areas are dimmed.
        most: total number of thumbnails, chosen evenly.

    Returns:
        An RGB image, COLUMNS thumbnails wide and as high as needed.
    """
    rows = max(1, most // len(parts) // COLUMNS)
    chosen = {part: evenly(indices, rows * COLUMNS) for part, indices in parts.items()}
    step = CELL + GAP
    height = sum(LINE + -(-len(indices) // COLUMNS) * step for indices in chosen.values())
    sheet = Image.new("RGB", (COLUMNS * step + GAP, height + GAP), "white")
    top = 0
    for part, indices in chosen.items():
        heading = f"{part}: {len(indices)} of {len(parts[part])}"
        ImageDraw.Draw(sheet).text((GAP, top + GAP), heading, fill="black")
        for position, index in enumerate(indices):
            row, column = divmod(position, COLUMNS)
            corner = (GAP + column * step, top + LINE + row * step)
            sheet.paste(_thumbnail(images, index, preprocessing), corner)
        top += LINE + -(-len(indices) // COLUMNS) * step
    return sheet


def _thumbnail(images: ImageSet, index: int, preprocessing: Preprocessing) -> Image.Image:
    """A thumbnail of CELL by CELL pixels with the image centred; grey if it cannot be read."""
    cell = Image.new("RGB", (CELL, CELL), "lightgrey")
    try:
        picture = _loaded(images, index)
    except UnreadableImage:
        return cell
    visible_width, visible_height = visible(np.array([picture.size], dtype=np.float64), preprocessing)[0].tolist()
    scale = CELL / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
    left, upper = round(width * (1 - visible_width) / 2), round(height * (1 - visible_height) / 2)
    middle = (left, upper, max(left + 1, width - left), max(upper + 1, height - upper))
    dimmed = picture.point(lambda value: round(value * DIMMED))
    dimmed.paste(picture.crop(middle), middle)
    cell.paste(dimmed, ((CELL - width) // 2, (CELL - height) // 2))
    return cell


def _loaded(images: ImageSet, index: int) -> Image.Image:
    """The image as a picture; a JPEG is decoded at a reduced size if that suffices."""
    if images.paths is None or not images.image_format.is_rgb:
        return as_picture(images.load(index))
    with opened(images.paths[index]) as image:
        image.draft(None, (2 * CELL, 2 * CELL))
        return to_rgb(image)
