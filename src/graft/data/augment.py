"""The configuration of data augmentation, as plain values. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from graft.config.registration import plain
from graft.config.schema import TrainConfig
from graft.config.targets import TARGET, check_target
from graft.data.preprocessing import Size
from graft.errors import ConfigError, nearest

POLICIES = ("trivial", "rand", "auto")

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)

PURPOSE = frozenset({"seed", "epoch", "index"})
"""Arguments that a custom transform gets with each image if it has parameters of these names."""

BATCH_ARGUMENTS = frozenset({"seed", "epoch", "indices"})
"""Arguments that the method `batch` of a custom transform gets with each batch if it asks for them by name."""


@dataclass(frozen=True)
class Augment:
    """Data augmentation of training images; the default is none. Evaluation never augments.

    Attributes:
        random_resized_crop: {"scale": (min, max fraction of the area), "ratio": (min, max width / height)} of a random
            crop, resized to the network's input size, instead of evaluation's resize and centre crop. None: as in
            evaluation.
        random_crop_padding: pixels of reflection padding before a random crop of the original size; None: no crop.
        horizontal_flip, vertical_flip: probabilities, in [0, 1].
        policy: torchvision's "trivial" (TrivialAugmentWide), "rand" (RandAugment) or "auto" (AutoAugment, ImageNet).
        color_jitter: strength of brightness, contrast and saturation changes, at least 0; hue changes by a quarter of
            it; brightness and contrast alone where images are not 8-bit RGB. 0: none.
        random_erasing: probability, in [0, 1], that a rectangle is filled with the mean colour.
        transforms: further transforms, applied in this order after all of the above. Each is a mapping of `_target_`,
            e.g. torchvision.transforms.v2.GaussianBlur, and its arguments. The object it builds, or with
            `_partial_: true` the target itself, is called with the image, a uint8 tensor [3, H, W] on the CPU (uint8 or
            uint16 [C, H, W] in another `graft.data.image_format`), and returns one of the same type and shape. Numbers
            that it draws from the global generators of torch, NumPy and Python depend on (seed, epoch, image) alone. It
            gets `seed`, `epoch` and `index` (a number of the image, from its name) if it has parameters of these names.

            A transform with a method `batch` is called through it instead, with images uint8 [B, 3, H, W] and, by
            name, with those of `seed`, `epoch` and `indices` (int64 [B], NumPy) that it takes. The images are on the
            device where the set is kept, if all the transforms have this method. What `batch` does to an image must
            depend on that image and on (seed, epoch, index) alone, never on the rest of the batch or a global
            generator; `graft.data.draws.uniforms` draws numbers in this way.

    Raises:
        ConfigError: a value out of range, or a transform that cannot be built from its arguments; names the key.
    """

    random_resized_crop: Mapping[str, Sequence[float]] | None = None
    random_crop_padding: int | None = None
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    policy: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    transforms: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> "Augment":
        """The augmentation of a plain `augment` group, without MixUp and CutMix, which act on batches."""
        values = {field.name: group[field.name] for field in fields(cls) if field.name in group}
        values["transforms"] = tuple(values.get("transforms") or ())
        return cls(**values)

    def __post_init__(self) -> None:
        if self.policy is not None and self.policy not in POLICIES:
            hint = nearest(str(self.policy), POLICIES, most=1, cutoff=0.3)
            raise ConfigError(f"augment.policy={self.policy}: choose null, {', '.join(POLICIES)}.{hint}")
        for key in ("horizontal_flip", "vertical_flip", "random_erasing"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"augment.{key}={getattr(self, key)}: must be a probability in [0, 1].")
        if self.color_jitter < 0:
            raise ConfigError(f"augment.color_jitter={self.color_jitter}: must be at least 0 (none).")
        if self.random_crop_padding is not None and self.random_crop_padding < 0:
            raise ConfigError(f"augment.random_crop_padding={self.random_crop_padding}: must be null or at least 0.")
        self._check_resized_crop()
        for index, node in enumerate(self.transforms):
            key = f"augment.transforms[{index}]"
            if not isinstance(node, Mapping) or TARGET not in node:
                raise ConfigError(
                    f"{key}={node}: must be a mapping with a _target_, e.g. "
                    "{_target_: torchvision.transforms.v2.GaussianBlur, kernel_size: 3}."
                )
            if node.get("_partial_"):  # the target itself is called, with the image first
                check_target(key, node, supplied=PURPOSE, positional=1)
            else:
                check_target(key, node)

    def _check_resized_crop(self) -> None:
        for name, (low, high) in self.resized_crop_ranges().items():
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ConfigError(
                    f"augment.random_resized_crop.{name}=[{low:g}, {high:g}]: must be [min, max], "
                    "with a min above 0" + (" and a max of at most 1." if name == "scale" else ".")
                )

    def resized_crop_ranges(self) -> dict[str, tuple[float, float]]:
        """(min, max) of "scale" and "ratio", by default as for ImageNet; empty without a random resized crop."""
        if self.random_resized_crop is None:
            return {}
        ranges: dict[str, Sequence[float]] = {"scale": SCALE, "ratio": RATIO}
        for name, value in self.random_resized_crop.items():
            if name not in ranges:
                raise ConfigError(f"augment.random_resized_crop.{name}: no such key. There are scale and ratio.")
            if value is not None:
                if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
                    raise ConfigError(f"augment.random_resized_crop.{name}={value}: must be two numbers, [min, max].")
                ranges[name] = value
        return {name: (float(pair[0]), float(pair[1])) for name, pair in ranges.items()}

    def min_side(self, size: Size) -> int:
        """Side, in pixels, from which on no random crop of an image is enlarged to `size`; 0 without random crops."""
        ranges = self.resized_crop_ranges()
        if not ranges:
            return 0
        narrowest = min(ranges["ratio"][0], 1 / ranges["ratio"][1], 1.0)
        return math.ceil(max(*size, math.sqrt(math.prod(size) / (ranges["scale"][0] * narrowest))))

    @property
    def batchable(self) -> bool:
        """Whether it starts from images resized as in evaluation; random resized crops need the original ones."""
        return self.random_resized_crop is None


def augment_of(config: TrainConfig) -> Augment:
    """The configured augmentation of single images; MixUp and CutMix act on batches."""
    return Augment.of(plain(config.augment))
