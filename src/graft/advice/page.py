"""The advice as one HTML file without any dependency: no network, no script, no other file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from graft.advice.advice import Advice, Assessed, cells, within_error
from graft.report.page import template_of

TEMPLATE = Path(__file__).with_name("page.html.jinja")

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 380, 56, 44, 14, 16
"""Size of the picture in pixels, and its margins."""

COLOURS = ("#2565a8", "#b8560b", "#00734f", "#8a3fa0", "#a8253f", "#5b6b00", "#007a8a", "#6a5acd")

MARKS = {"feature_extract": "frozen", "finetune": "fine-tuned"}
"""Strategy -> its word in the legend of the picture."""


@dataclass(frozen=True)
class Point:
    """A candidate in the picture, in pixels: its accuracy against its minutes, and the ends of its interval."""

    x: float
    y: float
    low: float
    high: float
    colour: str
    frozen: bool
    label: str


@dataclass(frozen=True)
class Tick:
    """A label of an axis, and its position in pixels."""

    position: float
    text: str


def as_page(advice: Advice) -> str:
    """The page: the ranked candidates, accuracy against minutes, what was probed, and the confused classes."""
    names = [network["model"] for network in advice.networks]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    x, y = _scales(advice.candidates)
    return template_of(TEMPLATE).render(
        advice=advice,
        rows=[cells(each) for each in advice.candidates],
        commands=[each.command for each in advice.candidates],
        within=within_error(advice.candidates),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        bottom=HEIGHT - BOTTOM,
        top=TOP,
        right=WIDTH - RIGHT,
        colours=colours,
        points=[_point(each, x, y, colours) for each in advice.candidates],
        minutes=[Tick(x.at(each), f"{each:g}") for each in x.ticks()],
        accuracies=[Tick(y.at(each), f"{each:.2f}") for each in y.ticks()],
    )


@dataclass(frozen=True)
class Scale:
    """From values between `low` and `high`, or their logarithms, to pixels."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The position of a value."""
        low, high, own = (math.log(each) if self.logarithmic else each for each in (self.low, self.high, value))
        return round(self.first + (own - low) / (high - low) * (self.last - self.first), 1)

    def ticks(self) -> list[float]:
        """Round values in the range."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [round(digit * 10.0**power, 6) for power in powers for digit in (1, 2, 5)]
        else:
            step = 0.1 if self.high - self.low > 0.4 else 0.05
            values = [round(number * step, 2) for number in range(round(1 / step) + 1)]
        return [value for value in values if self.low <= value <= self.high]


def _scales(candidates: Sequence[Assessed]) -> tuple[Scale, Scale]:
    minutes = [max(each.cost.minutes, 0.01) for each in candidates]
    low, high = (pick(each.prediction.interval[end] for each in candidates) for pick, end in ((min, 0), (max, 1)))
    return (
        Scale(min(minutes) / 1.3, max(minutes) * 1.3, LEFT, WIDTH - RIGHT, logarithmic=True),
        Scale(max(0.0, low - 0.02), min(1.0, high + 0.02), HEIGHT - BOTTOM, TOP),
    )


def _point(each: Assessed, x: Scale, y: Scale, colours: dict[str, str]) -> Point:
    name, accuracy = each.candidate.source.name, each.prediction.accuracy
    low, high = each.prediction.interval
    return Point(
        x.at(max(each.cost.minutes, 0.01)), y.at(accuracy), y.at(low), y.at(high), colours[name],
        each.candidate.strategy == "feature_extract",
        f"{name}, {each.candidate.strategy}, frozen up to {each.candidate.cut}: {accuracy:.3f}",
    )  # fmt: skip
