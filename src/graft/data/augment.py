"""Augmentation of training images, as plain values; imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from graft.config.targets import TARGET, check_target
from graft.errors import ConfigError, nearest

POLICIES = ("trivial", "rand", "auto")

SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)

PURPOSE = frozenset({"seed", "epoch", "index"})
"""Arguments that a custom transform gets with each image if it asks for them by name."""

BATCH_ARGUMENTS = frozenset({"seed", "epoch", "indices"})
"""Arguments that the method `batch` of a custom transform gets with each batch if it asks for them by name."""


@dataclass(frozen=True)
class Augment:
    """Random changes of training images; evaluation has none. The default is no augmentation at all.

    Attributes:
        random_resized_crop: {"scale": (least, most share of the area), "ratio": (least, most width /
            height)}, cut out and resized to the network's input; replaces evaluation's resize and crop.
            None: evaluation's.
        random_crop_padding: pixels of reflected border around the image before a crop of its own size; None:
            no crop.
        horizontal_flip, vertical_flip: probabilities.
        policy: torchvision's "trivial" (TrivialAugmentWide), "rand" (RandAugment) or "auto" (AutoAugment,
            ImageNet).
        color_jitter: strength of brightness, contrast and saturation changes; hue changes a quarter as much;
            0: none.
        random_erasing: probability that a rectangle is filled with the mean colour.
        transforms: further transforms, applied in this order after all of the above. Each is a mapping of `_target_`,
            e.g. torchvision.transforms.v2.GaussianBlur, and its arguments; what it builds, or with `_partial_: true`
            the target itself, is called with the image, a uint8 tensor [3, S, S] on the CPU, and returns one of the
            same type and shape. What it draws from the global generators of torch, NumPy and Python depends on
            (seed, epoch, image) alone. It gets `seed`, `epoch` and `index` (of the image in the training set) if it
            has arguments of these names.

            A transform with a method `batch` is called through it instead, with images uint8 [B, 3, S, S] and, by
            name, with those of `seed`, `epoch` and `indices` (int64 [B], NumPy) that it takes. The images are on the
            device where the set is kept, if all the transforms have this method. What `batch` does to an image must
            depend on that image and on (seed, epoch, index) alone, never on the rest of the batch or a global
            generator; `graft.data.draws.uniforms` draws numbers in this way.

    Raises:
        ConfigError: a value out of its range, or a transform that cannot be built from its arguments; names the key.
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
        """The augmentation that an `augment` group configures, as plain values; MixUp and CutMix mix batches and are
        not part of it."""
        own = {field.name: group[field.name] for field in fields(cls) if field.name in group}
        own["transforms"] = tuple(own.get("transforms") or ())
        return cls(**own)

    def __post_init__(self) -> None:
        if self.policy is not None and self.policy not in POLICIES:
            hint = nearest(str(self.policy), POLICIES, most=1, cutoff=0.3)
            raise ConfigError(f"augment.policy={self.policy}: choose null, {', '.join(POLICIES)}.{hint}")
        for key in ("horizontal_flip", "vertical_flip", "random_erasing"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"augment.{key}={getattr(self, key)}: a probability lies between 0 and 1.")
        if self.color_jitter < 0:
            raise ConfigError(f"augment.color_jitter={self.color_jitter}: a strength is 0 (none) or more.")
        if self.random_crop_padding is not None and self.random_crop_padding < 0:
            raise ConfigError(f"augment.random_crop_padding={self.random_crop_padding}: pixels, 0 or more, or null.")
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
        for name, (least, most) in self.resized_crop_ranges().items():
            if not 0 < least <= most or (name == "scale" and most > 1):
                raise ConfigError(
                    f"augment.random_resized_crop.{name}=[{least:g}, {most:g}]: "
                    "the least comes first and is above 0" + (", the most is at most 1." if name == "scale" else ".")
                )

    def resized_crop_ranges(self) -> dict[str, tuple[float, float]]:
        """(least, most) of "scale" and "ratio", ImageNet's by default; empty without such a crop."""
        if self.random_resized_crop is None:
            return {}
        ranges: dict[str, Sequence[float]] = {"scale": SCALE, "ratio": RATIO}
        for name, given in self.random_resized_crop.items():
            if name not in ranges:
                raise ConfigError(f"augment.random_resized_crop.{name}: there are scale and ratio.")
            if given is not None:
                if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
                    raise ConfigError(f"augment.random_resized_crop.{name}={given}: two numbers, [least, most].")
                ranges[name] = given
        return {name: (float(pair[0]), float(pair[1])) for name, pair in ranges.items()}

    def least_side(self, size: int) -> int:
        """Pixels that each side of an image needs so that no random crop to `size` is enlarged; 0 if there are none."""
        ranges = self.resized_crop_ranges()
        if not ranges:
            return 0
        narrowest = min(ranges["ratio"][0], 1 / ranges["ratio"][1], 1.0)
        return math.ceil(size / math.sqrt(ranges["scale"][0] * narrowest))

    @property
    def batchable(self) -> bool:
        """Whether it starts from evaluation's images; a random resized crop needs whole images."""
        return self.random_resized_crop is None
