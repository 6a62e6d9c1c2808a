"""Resizing, cropping and normalisation of images in evaluation, as plain values for checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from graft.data.image_format import MOST_CHANNELS, RGB, ImageFormat
from graft.errors import ConfigError, RecordError
from graft.system.values import Check, UnexpectedValue, among, integer, mapping, number, read_values, sequence

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
    "mean": sequence(number(-1000, 1000), MOST_CHANNELS, least=1),
    "std": sequence(number(1e-6, 1000), MOST_CHANNELS, least=1),
    "interpolation": among("nearest", "bilinear", "bicubic"),
    "image_format": mapping,
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
        mean, std: per channel, of values in [0, 1].
        interpolation: "bilinear", "bicubic" or "nearest".
        image_format: channels and levels of the images.
    """

    input_size: int | Size = 224
    resize_size: int = 256
    fit: Literal["crop", "squash"] = "crop"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    image_format: ImageFormat = RGB

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
    def mean_colour(self) -> tuple[int, ...]:
        """`mean` as levels of each channel, rounded."""
        return tuple(round(self.image_format.levels * channel) for channel in self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the network's input."""
        return self.image_format.channels, *self.size

    def to_dict(self) -> dict[str, Any]:
        """The values as plain types, for a checkpoint, a summary or a JSON file; without the format if it is RGB."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        image_format = {} if self.image_format.is_rgb else {"image_format": self.image_format.to_dict()}
        return {key: value for key, value in values.items() if key != "image_format"} | image_format

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "preprocessing") -> "Preprocessing":
        """The inverse of `to_dict`.

        Args:
            values: as read from a file.
            source: the file, for messages.

        Raises:
            RecordError: a value of a wrong type or out of range.
        """
        found = read_values(values, RECORDED, source, "preprocessing")
        if "image_format" in found:
            found["image_format"] = ImageFormat.from_dict(found["image_format"], source)
        read = cls(**found)
        if not len(read.mean) == len(read.std) == read.image_format.channels:
            raise RecordError(
                f"{source}: preprocessing.mean and std have {len(read.mean)} and {len(read.std)} values for "
                f"{read.image_format.channels} channels."
            )
        return read

    def in_format(self, image_format: ImageFormat) -> "Preprocessing":
        """The same resizing and cropping of images of another format; mean and std are 0.5 until they are measured."""
        if image_format == self.image_format:
            return self
        half = (0.5,) * image_format.channels
        return replace(self, image_format=image_format, mean=half, std=half)

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
        for name in ("mean", "std"):
            if len(values.get(name, self.mean)) != self.image_format.channels:
                raise ConfigError(
                    f"{key}.{name}: has {len(values[name])} values; the images have {self.image_format.channels} "
                    "channels."
                )
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
