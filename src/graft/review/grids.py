"""Images side by side, each with a title."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from graft.data.display import as_picture, visible
from graft.learning.predictions import AnyPredictions, Array, LabelPredictions
from graft.review.drawing import (
    CORRECT,
    HEAD,
    INK,
    WRONG,
    heading_width,
    new_figure,
    put_heading,
    rendered,
    shortened,
    style,
)

SIDE, GAP, LINE = 128, 14, 16
"""In pixels: height of a tile, distance between tiles, height of a line of the title."""

LETTERS = 19
"""Number of characters that fit above a tile."""


@dataclass(frozen=True)
class Tile:
    """An image with a title.

    Attributes:
        image: [H, W, C].
        lines: one or two lines of title.
        colour: of title and frame.
    """

    image: Array
    lines: tuple[str, ...]
    colour: str = INK


def verdict(image: Array, predicted: str, true: str, confidence: float) -> Tile:
    """`✓ predicted (true) 97 %` in green, or `✗ …` in red; on two lines where it is long."""
    correct = predicted == true
    share = f"{100 * confidence:.0f} %"
    whole = f"{'✓' if correct else '✗'} {predicted} ({true}) {share}"
    if len(whole) <= LETTERS:
        lines: tuple[str, ...] = (whole,)
    else:
        lines = (
            f"{whole[0]} {shortened(predicted, LETTERS - 2)}",
            f"({shortened(true, LETTERS - len(share) - 3)}) {share}",
        )
    return Tile(image, lines, CORRECT if correct else WRONG)


def label_verdict(image: Array, predicted: str, true: str, correct: bool) -> Tile:
    """`✓ cat, tree` in green if all labels are predicted and no other, else `✗ …` in red with the true labels below."""
    first = f"{'✓' if correct else '✗'} {shortened(predicted, LETTERS - 2)}"
    return Tile(image, (first, "" if correct else f"({shortened(true, LETTERS - 2)})"), CORRECT if correct else WRONG)


def verdicts(
    predictions: AnyPredictions, positions: Array, images: Sequence[Array], classes: Sequence[str]
) -> list[Tile]:
    """A tile for each of `positions`, whose images are `images`."""
    if isinstance(predictions, LabelPredictions):
        return [
            label_verdict(image, *predictions.texts(int(position), classes), bool(predictions.correct[position]))
            for position, image in zip(positions, images, strict=True)
        ]
    return [
        verdict(
            image,
            classes[predictions.predicted[position]],
            classes[predictions.labels[position]],
            float(predictions.confidence[position]),
        )
        for position, image in zip(positions, images, strict=True)
    ]


def grid(tiles: Sequence[Tile], heading: str, *, columns: int = 4) -> Image.Image:
    """Tiles in rows of `columns` under a heading (see `put_heading`); without tiles the heading alone."""
    columns = max(1, min(columns, len(tiles)))
    images = [fitted(tile.image) for tile in tiles]
    high = max((image.shape[0] for image in images), default=0)
    wide = max([SIDE, *(image.shape[1] for image in images)]) + GAP
    title = LINE * max((len(tile.lines) for tile in tiles), default=0) + 4
    below = title + high + GAP
    width = max(columns * wide + GAP, heading_width(heading))
    height = HEAD + -(-len(tiles) // columns) * below
    with style([heading, *(line for tile in tiles for line in tile.lines)]):
        figure = new_figure(width, height)
        put_heading(figure, heading)
        for number, (tile, image) in enumerate(zip(tiles, images, strict=True)):
            left, top = GAP + number % columns * wide, HEAD + number // columns * below + title
            figure.text(left / width, 1 - (top - 4) / height, "\n".join(tile.lines), fontsize=9, linespacing=1.25,
                        va="bottom", color=tile.colour)  # fmt: skip
            figure.figimage(framed(image, tile.colour), left, height - top - image.shape[0], origin="upper")
        return rendered(figure)


def fitted(image: Array) -> Array:
    """Small images enlarged by a whole factor, pixel by pixel; large ones reduced to a height of `SIDE`."""
    image = visible(image)
    height, width = image.shape[:2]
    if enlarged(height):
        factor = round(SIDE / height)
        return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    size = (max(1, round(width * SIDE / height)), SIDE)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def enlarged(height: int) -> bool:
    """Whether images of this height are enlarged."""
    return height <= SIDE // 2


def framed(image: Array, colour: str) -> Array:
    """`image` with a border of three pixels drawn over its edge, unless the colour is that of plain text."""
    if colour == INK:
        return image
    image = image.copy()
    value = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    image[:3], image[-3:], image[:, :3], image[:, -3:] = value, value, value, value
    return image


def thumbnail(image: Array, side: int) -> Array:
    """An image [H, W, C] reduced or enlarged to uint8 [side, side, 3]."""
    return np.asarray(as_picture(image).resize((side, side), Image.Resampling.BILINEAR))


def encoded(image: Image.Image, *, photograph: bool) -> bytes:
    """The file of an image: JPEG for photographs (a tenth of a PNG), PNG for drawings and enlarged pixels."""
    buffer = io.BytesIO()
    if photograph:
        image.save(buffer, "JPEG", quality=90, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def overlaid(image: Array, heat: Array) -> Array:
    """The image next to a copy under a heat map, uint8 [H, 2 W, 3].

    Args:
        image: [H, W, C].
        heat: [H, W] in [0, 1]: 0 dims the image, 1 colours it.
    """
    from matplotlib import colormaps

    colours = colormaps["inferno"](heat)[..., :3] * 255
    image = visible(image)
    mixed = 0.45 * image + 0.55 * colours
    return np.concatenate([image, np.rint(mixed).astype(np.uint8)], axis=1)
