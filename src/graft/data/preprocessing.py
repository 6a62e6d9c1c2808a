"""Resizing, cropping and normalisation of images in evaluation, as plain values for checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from graft.errors import ConfigError
from graft.system.values import Check, UnexpectedValue, among, integer, number, read_values, sequence

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST_INPUT = 4096
"""Largest input size, in pixels, in a file."""

Size = tuple[int, int]
"""Height and width, in pixels."""


def _input_size(value: object) -> int | Size:
    """Check for a side, or for a height and a width."""
    side = integer(1, LARGEST_INPUT)
    return sequence(side, 2, least=2)(value) if isinstance(value, list | tuple) else side(value)


RECORDED: dict[str, Check] = {
    "input_size": _input_size,
    "resize_size": integer(1, 2 * LARGEST_INPUT),
    "fit": among("crop", "squash"),
    "mean": sequence(number(-1000, 1000), 3, least=3),
    "std": sequence(number(1e-6, 1000), 3, least=3),
    "interpolation": among("nearest", "bilinear", "bicubic"),
}
"""Allowed values of a preprocessing in a file."""


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, cropping and normalisation of an image in evaluation.

    Attributes:
        input_size: side of the network's square input, or its (height, width), in pixels.
        resize_size: with fit="crop", the short side before the centre crop, in pixels (at least that of `input_size`).
        fit: "crop" keeps the aspect ratio: the image is resized until it just covers `box`, of which the centre is
            cropped to `input_size`; "squash" resizes both sides to `input_size`, so that nothing is cut off.
        mean, std: per RGB channel, of values in [0, 1].
        interpolation: "bilinear", "bicubic" or "nearest".
    """

    input_size: int | Size = 224
    resize_size: int = 256
    fit: Literal["crop", "squash"] = "crop"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if not isinstance(self.input_size, int):
            height, width = self.input_size
            object.__setattr__(self, "input_size", height if height == width else (height, width))

    @property
    def size(self) -> Size:
        """Height and width of the network's input."""
        return pair(self.input_size)

    @property
    def box(self) -> Size:
        """Height and width before the centre crop: `size` enlarged so that its short side is `resize_size`."""
        short = min(self.size)
        height, width = (round(side * self.resize_size / short) for side in self.size)
        return height, width

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """`mean` as RGB grey levels, rounded, in [0, 255]."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue

    def to_dict(self) -> dict[str, Any]:
        """The values as plain types, for a checkpoint, a summary or a JSON file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "preprocessing") -> "Preprocessing":
        """The inverse of `to_dict`.

        Args:
            values: as read from a file.
            source: the file, for messages.

        Raises:
            RecordError: a value of a wrong type or out of range.
        """
        return cls(**read_values(values, RECORDED, source, "preprocessing"))

    def changed(self, changes: Mapping[str, Any], key: str) -> "Preprocessing":
        """A copy with those of `changes` that are not None; with input_size alone, resize_size is scaled with it.

        Args:
            changes: attributes of this class, e.g. {"resize_size": 224, "mean": None}.
            key: of the configuration, for the error message, e.g. "data.preprocess".

        Raises:
            ConfigError: the crop would be larger than the image, or `input_size` is not a size.
        """
        values: dict[str, Any] = {
            name: tuple(v) if name in ("mean", "std") else v for name, v in changes.items() if v is not None
        }
        if "input_size" in values:
            size = require_size(values["input_size"], f"{key}.input_size")
            values = {"resize_size": round(self.resize_size * min(pair(size)) / min(self.size))} | values
        changed = replace(self, **values)
        if changed.resize_size < min(changed.size):
            raise ConfigError(
                f"{key}.resize_size={changed.resize_size} and {key}.input_size={shown_size(changed.input_size)} "
                "disagree: the crop would be larger than the image."
            )
        return changed


def pair(size: int | Sequence[int]) -> Size:
    """(height, width) of a side or of both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def shown_size(size: int | Sequence[int]) -> str:
    """An input size as written on the command line: "224" or "[192,320]"."""
    height, width = pair(size)
    return str(height) if height == width else f"[{height},{width}]"


def require_size(value: object, key: str) -> int | Size:
    """An input size of the configuration.

    Raises:
        ConfigError: neither a number of pixels nor a height and a width; names `key`.
    """
    try:
        return _input_size(value)
    except UnexpectedValue as error:
        shown = f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else value
        raise ConfigError(
            f"{key}={shown}: must be the side of a square in pixels, from 1 to {LARGEST_INPUT:,}, or [height,width]."
        ) from error
