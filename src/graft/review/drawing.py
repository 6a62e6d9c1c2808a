"""The look of our pictures: colours, fonts for any script, and the way from a matplotlib figure to an image.

matplotlib is imported when the first picture is made, not before.
"""

import functools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, INK, FAINT = "#00734f", "#b8310b", "#1b1f24", "#8c959f"
"""Bluish green and vermilion are told apart by the colour-blind too (Okabe & Ito 2008); a mark says it as well."""

HEAD = 50
"""Pixels that a heading of two lines takes at the top of a picture."""

DPI = 100
BASE = "DejaVu Sans"  # comes with matplotlib


@contextmanager
def style(texts: Iterable[str]) -> Iterator[None]:
    """Inside, figures are drawn in our style, with fonts that have the characters of `texts` where there are any.

    Dollar signs are dollar signs. A character that no font of this machine has is drawn as a box.
    """
    import matplotlib

    fonts = [BASE, *fonts_for(frozenset("".join(texts)))]
    settings = {
        "font.family": fonts, "font.size": 9, "text.parse_math": False, "text.color": INK, "axes.edgecolor": FAINT,
        "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        yield


@functools.lru_cache(maxsize=64)
def fonts_for(characters: frozenset[str]) -> tuple[str, ...]:
    """Names of installed fonts that together have what `BASE` lacks; nothing is looked for where it lacks nothing."""
    from matplotlib import font_manager

    missing = {ord(character) for character in characters if character.isprintable()}
    missing -= characters_of(font_manager.findfont(BASE))
    found: list[str] = []
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.weight != 400, font.name)):
        if not missing:
            break
        if entry.style == "normal" and (has := characters_of(entry.fname) & missing):
            found.append(entry.name)
            missing -= has
    return tuple(dict.fromkeys(found))


@functools.lru_cache(maxsize=256)
def characters_of(file: str) -> frozenset[int]:
    """Code points a font file has glyphs for; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def new_figure(width: int, height: int) -> "Figure":
    """An empty white figure of so many pixels, without any window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def put_heading(figure: "Figure", heading: str) -> None:
    """The first line of `heading` in bold, the others below it, in the upper left corner."""
    height = figure.get_figheight() * DPI
    for number, line in enumerate(heading.split("\n")):
        weight, size = ("bold", 11) if number == 0 else ("normal", 9)
        x, y = 12 / (figure.get_figwidth() * DPI), 1 - (10 + 19 * number) / height
        figure.text(x, y, line, fontsize=size, weight=weight, va="top")


def heading_width(heading: str) -> int:
    """Pixels that a heading needs, roughly."""
    first, *rest = heading.split("\n")
    return 24 + max([10 * len(first), *(7 * len(line) for line in rest)])


def rendered(figure: "Figure") -> Image.Image:
    """The figure as an RGB picture."""
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]


def shortened(text: str, length: int) -> str:
    """`text` in at most `length` characters, its middle left out where it is longer."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
