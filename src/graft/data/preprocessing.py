"""Resizing, cropping and normalisation of images in evaluation, as plain values for checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from graft.errors import ConfigError
from graft.system.values import Check, among, integer, number, read_values, sequence

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST_INPUT = 4096
"""Largest input size, in pixels, in a file."""

RECORDED: dict[str, Check] = {
    "input_size": integer(1, LARGEST_INPUT),
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
        input_size: side of the network's square input, in pixels.
        resize_size: with fit="crop", the short side before the centre crop, in pixels (at least `input_size`).
        fit: "crop" keeps the aspect ratio (short side to `resize_size`, centre crop to `input_size`);
            "squash" resizes both sides to `input_size`, so that nothing is cut off.
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
            ConfigError: the crop would be larger than the image.
        """
        values: dict[str, Any] = {
            name: tuple(v) if name in ("mean", "std") else v for name, v in changes.items() if v is not None
        }
        if "input_size" in values and "resize_size" not in values:
            values["resize_size"] = round(self.resize_size * values["input_size"] / self.input_size)
        changed = replace(self, **values)
        if changed.resize_size < changed.input_size:
            raise ConfigError(
                f"{key}.resize_size={changed.resize_size} and {key}.input_size={changed.input_size} "
                "disagree: the crop would be larger than the image."
            )
        return changed
