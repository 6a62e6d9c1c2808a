"""An image with its prediction below it."""

from PIL import Image, ImageDraw, ImageFont

from graft.review.predictions import Prediction

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

LONGEST = 640
SHORTEST = 320
LINE = 24
MARGIN = 8
INK, PAPER, BAR = (20, 20, 20), (255, 255, 255), (167, 205, 242)


def annotated(picture: Image.Image, prediction: Prediction) -> Image.Image:
    """A copy of `picture`, between 320 and 640 pixels wide and high, with one line per class below it: a
    bar of the length of its probability, its name, the probability in percent."""
    shown = _resized(picture)
    width = max(shown.width, SHORTEST)
    sheet = Image.new("RGB", (width, shown.height + MARGIN + LINE * len(prediction.classes)), PAPER)
    sheet.paste(shown, ((width - shown.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for rank, (name, probability) in enumerate(zip(prediction.marked, prediction.probabilities, strict=True)):
        top = shown.height + MARGIN + rank * LINE
        draw.rectangle((0, top, round((width - 1) * probability), top + LINE - 4), fill=BAR)
        figure = f"{probability:.1%}"
        right = width - MARGIN - draw.textlength(figure, font)
        draw.text((MARGIN, top), _cut(draw, name, font, right - 2 * MARGIN), INK, font)
        draw.text((right, top), figure, INK, font)
    return sheet


def _resized(picture: Image.Image) -> Image.Image:
    """`picture` with a long side of at most LONGEST; small ones are enlarged by a whole factor to stay sharp."""
    longest = max(picture.size)
    if longest > LONGEST:
        return picture.resize([max(1, round(side * LONGEST / longest)) for side in picture.size])
    times = max(1, SHORTEST // longest)
    return picture.resize([side * times for side in picture.size], Image.Resampling.NEAREST)


def _cut(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """`text` on one line, with … in place of its end if it is too long."""
    text = " ".join(text.split())
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
