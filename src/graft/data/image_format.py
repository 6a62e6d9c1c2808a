"""Channels and grey levels of the images of a run, as plain values. Imports neither torch nor NumPy."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from graft.errors import ConfigError
from graft.system.values import Check, UnexpectedValue, integer, number, optional, read_values, sequence

if TYPE_CHECKING:
    from graft.config.schema import DataConfig

MOST_CHANNELS = 256
"""Largest number of channels of a network's input, and of bands of a file."""

BITS = (8, 16)


def _bits(value: object) -> int:
    """Check for 8 or 16."""
    if value not in BITS or not isinstance(value, int):
        raise UnexpectedValue(value, "8 or 16")
    return value


RECORDED: dict[str, Check] = {
    "channels": integer(1, MOST_CHANNELS),
    "bits": _bits,
    "bands": optional(sequence(integer(1, MOST_CHANNELS), MOST_CHANNELS, least=1)),
    "max_value": optional(number(1e-6, 2**32)),
}
"""Allowed values of a format in a file."""


@dataclass(frozen=True)
class ImageFormat:
    """What every image of a run is converted to when it is read.

    In memory an image has integer levels from 0 to `levels`, uint8 or uint16; normalisation divides by `levels`.

    Attributes:
        channels: of the network's input: 1 for grey, 3 for RGB, others for multispectral images.
        bits: of the levels in memory, 8 or 16; levels of 8 bits are kept exactly in 16.
        bands: numbers, from 1, of the bands of a file that become the channels; None: all of them, in their order.
        max_value: value in a file that becomes the highest level, e.g. 4095 for 12 bits; larger ones are clipped.
            None: the largest of the file's type, for floating-point numbers 1.
    """

    channels: int = 3
    bits: int = 8
    bands: tuple[int, ...] | None = None
    max_value: float | None = None

    @property
    def is_rgb(self) -> bool:
        """Whether it is 8-bit RGB, which Pillow converts any image to."""
        return self == RGB

    @property
    def levels(self) -> int:
        """The highest level, 255 or 65535."""
        return int(2**self.bits - 1)

    @property
    def extensions(self) -> tuple[str, ...]:
        """Endings of files that are read besides those of pictures."""
        return () if self.is_rgb else (".npy",)

    def __str__(self) -> str:
        channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        bands = "" if self.bands is None else f" (bands {', '.join(map(str, self.bands))})"
        most = "" if self.max_value is None else f", values up to {self.max_value:g}"
        return f"{channels}{bands} of {self.bits} bits{most}"

    def overrides(self) -> str:
        """The keys of `data` that configure it, as on the command line; "" for 8-bit RGB."""
        bands = None if self.bands is None else f"[{','.join(map(str, self.bands))}]"
        most = None if self.max_value is None else f"{self.max_value:g}"
        keys = {"channels": self.channels, "bits": self.bits, "bands": bands, "max_value": most}
        return "" if self.is_rgb else " ".join(f"data.{key}={value}" for key, value in keys.items() if value)

    def to_dict(self) -> dict[str, Any]:
        """The values as plain types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str) -> "ImageFormat":
        """The inverse of `to_dict`.

        Raises:
            RecordError: a value of a wrong type or out of range.
        """
        return cls(**read_values(values, RECORDED, source, "image_format"))

    @classmethod
    def of(cls, data: "DataConfig") -> "ImageFormat":
        """The format that the keys `channels`, `bits`, `bands` and `max_value` of `data` configure.

        Raises:
            ConfigError: another number of bits, or of bands than of channels.
        """
        bands = None if data.bands is None else tuple(data.bands)
        if bands is not None and not bands:
            raise ConfigError("data.bands=[]: name at least one band, as in data.bands=[4,3,2].")
        channels = data.channels or (3 if bands is None else len(bands))
        if bands is not None and len(bands) != channels:
            raise ConfigError(
                f"data.channels={channels} and data.bands=[{','.join(map(str, bands))}] disagree: these are "
                f"{len(bands)} bands.\nLeave data.channels out."
            )
        if data.bits not in (None, *BITS):
            raise ConfigError(f"data.bits={data.bits}: must be 8 or 16, the bits of an image in memory.")
        rgb = (channels, bands, data.max_value) == (3, None, None)
        return cls(channels, data.bits or (8 if rgb else 16), bands, data.max_value)

    def configure(self, data: "DataConfig") -> None:
        """Set the keys of `data` that `of` reads; those of 8-bit RGB to null."""
        rgb = self.is_rgb
        data.channels, data.bits = (None, None) if rgb else (self.channels, self.bits)
        data.bands = None if self.bands is None else list(self.bands)
        data.max_value = self.max_value


RGB = ImageFormat()
