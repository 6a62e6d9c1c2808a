"""The pictures of a class at a glance: a PNG of miniatures, with what the network will not see of them dimmed."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from graft.data.images import ImageSet, opened, to_rgb
from graft.data.preprocessing import Preprocessing
from graft.errors import UnreadableImage
from graft.inspection.dataset import visible

CELL, GAP, COLUMNS, LINE = 128, 4, 8, 20
"""Side of a miniature, space between two, miniatures in a row, height of a heading; in pixels."""

DIMMED = 0.35
"""What is left of the brightness of what the crop cuts off."""


def evenly(indices: Sequence[int], most: int) -> list[int]:
    """At most `most` of `indices`, from the first to the last at equal distances."""
    places = np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(int))
    return [indices[place] for place in places.tolist()]


def contact_sheet(
    images: ImageSet, parts: Mapping[str, Sequence[int]], preprocessing: Preprocessing, most: int
) -> Image.Image:
    """Miniatures of some of the pictures of one class, part by part.

    Args:
        images: the pictures.
        parts: what each part is called (in ASCII), and the indices of its readable pictures.
        preprocessing: what the network sees of a picture; the rest is dimmed.
        most: so many miniatures altogether, evenly chosen.

    Returns:
        RGB, COLUMNS miniatures wide and as high as it takes.
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
        for place, index in enumerate(indices):
            row, column = divmod(place, COLUMNS)
            corner = (GAP + column * step, top + LINE + row * step)
            sheet.paste(_miniature(images, index, preprocessing), corner)
        top += LINE + -(-len(indices) // COLUMNS) * step
    return sheet


def _miniature(images: ImageSet, index: int, preprocessing: Preprocessing) -> Image.Image:
    """[CELL, CELL], the picture in the middle; grey where it can no longer be read."""
    cell = Image.new("RGB", (CELL, CELL), "lightgrey")
    try:
        picture = _loaded(images, index)
    except UnreadableImage:
        return cell
    across, down = visible(np.array([picture.size], dtype=np.float64), preprocessing)[0].tolist()
    larger = CELL / max(picture.size)
    width, height = (max(1, round(side * larger)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.NEAREST if larger > 1 else Image.Resampling.BICUBIC)
    left, upper = round(width * (1 - across) / 2), round(height * (1 - down) / 2)
    middle = (left, upper, max(left + 1, width - left), max(upper + 1, height - upper))
    shown = picture.point(lambda value: round(value * DIMMED))
    shown.paste(picture.crop(middle), middle)
    cell.paste(shown, ((CELL - width) // 2, (CELL - height) // 2))
    return cell


def _loaded(images: ImageSet, index: int) -> Image.Image:
    """The picture as RGB, a JPEG decoded at a fraction of its size where that is enough."""
    if images.paths is None:
        return images.load(index)
    with opened(images.paths[index]) as image:
        image.draft(None, (2 * CELL, 2 * CELL))
        return to_rgb(image)
