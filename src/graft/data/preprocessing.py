"""What evaluation does to an image before the network sees it, as plain values a checkpoint can carry."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from graft.errors import ConfigError
from graft.system.values import Check, among, integer, number, read_values, sequence

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST_INPUT = 4096
"""Side of the largest image, in pixels, that a file may ask for."""

RECORDED: dict[str, Check] = {
    "input_size": integer(1, LARGEST_INPUT),
    "resize_size": integer(1, 2 * LARGEST_INPUT),
    "fit": among("crop", "squash"),
    "mean": sequence(number(-1000, 1000), 3, least=3),
    "std": sequence(number(1e-6, 1000), 3, least=3),
    "interpolation": among("nearest", "bilinear", "bicubic"),
}
"""What a preprocessing may be that a file brings."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise.

    Attributes:
        input_size: side of the square the network sees, in pixels.
        resize_size: with fit="crop", the short side before the centre crop, in pixels (at least `input_size`).
        fit: "crop" keeps the aspect ratio (short side to `resize_size`, centre crop to `input_size`);
            "squash" resizes both sides to `input_size` and loses nothing at the borders.
        mean, std: per RGB channel, of values in [0, 1].
        interpolation: "bilinear", "bicubic" or "nearest".
    """

    input_size: int = 224
    resize_size: int = 256
    fit: Literal["crop", "squash"] = "crop"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The grey levels that `mean` is nearest to, each in [0, 255]."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what a checkpoint, a summary or a JSON file can hold."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "preprocessing") -> "Preprocessing":
        """The inverse of `to_dict`.

        Args:
            values: as a file holds them.
            source: the file, for messages.

        Raises:
            RecordError: a value of another type or beyond its limit.
        """
        return cls(**read_values(values, RECORDED, source, "preprocessing"))

    def changed(self, wanted: Mapping[str, Any], key: str) -> "Preprocessing":
        """This with the values of `wanted` that are not None; a new input_size alone keeps the margin of the crop.

        Args:
            wanted: attributes of this class, e.g. {"resize_size": 224, "mean": None}.
            key: where they were configured, for the error message, e.g. "data.preprocess".

        Raises:
            ConfigError: the crop would be larger than the image.
        """
        given: dict[str, Any] = {
            name: tuple(v) if name in ("mean", "std") else v for name, v in wanted.items() if v is not None
        }
        if "input_size" in given and "resize_size" not in given:
            given["resize_size"] = round(self.resize_size * given["input_size"] / self.input_size)
        changed = replace(self, **given)
        if changed.resize_size < changed.input_size:
            raise ConfigError(
                f"{key}.resize_size={changed.resize_size} and {key}.input_size={changed.input_size} "
                "disagree: the crop would be larger than the image."
            )
        return changed
