"""The style of Graft's pictures: colours, fonts for any script, and the conversion of a matplotlib figure to an image.

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

CORRECT, WRONG, INK, FAINT = "#00734f", "#b8310b", "#1b1f24", "#8c959f"
"""Bluish green and vermilion, which the colour-blind can distinguish (Okabe & Ito 2008); a mark is shown as well."""

HEAD = 50
"""Height in pixels of a heading of two lines at the top of a picture."""

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
    """Names of installed fonts that together have the characters which `BASE` lacks; empty if it lacks none."""
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
    """Code points that a font file has glyphs for; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def new_figure(width: int, height: int) -> "Figure":
    """An empty white figure of this size in pixels, independent of pyplot and of any window system."""
    from matplotlib.figure import Figure

    return Figure((width / DPI, height / DPI), dpi=DPI, facecolor="white")


def put_heading(figure: "Figure", heading: str) -> None:
    """The first line of `heading` in bold, the others below it, in the upper left corner."""
    height = figure.get_figheight() * DPI
    for number, line in enumerate(heading.split("\n")):
        weight, size = ("bold", 11) if number == 0 else ("normal", 9)
        x, y = 12 / (figure.get_figwidth() * DPI), 1 - (10 + 19 * number) / height
        figure.text(x, y, line, fontsize=size, weight=weight, va="top")


def heading_width(heading: str) -> int:
    """Approximate width of a heading in pixels."""
    first, *rest = heading.split("\n")
    return 24 + max([10 * len(first), *(7 * len(line) for line in rest)])


def rendered(figure: "Figure") -> Image.Image:
    """The figure as an RGB image, whichever canvas it was made with."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def shortened(text: str, length: int) -> str:
    """`text` on one line of at most `length` characters, with … in place of the middle if it is longer."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    tail = (length - 1) // 3
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
