"""Random parameters of data augmentation, a pure function of (seed, epoch, key of the image).

They do not depend on the batch, the number of workers or the order of the images, and use no global generator. The key
is a hash of the image's name (`graft.data.images.draw_keys`), so folds and shots augment an image alike.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torchvision.transforms import v2

from graft.data.augment import Augment
from graft.data.preprocessing import Size
from graft.seeding import seed_of
from graft.system.compat import augmentation_space, auto_augment_pairs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ATTEMPTS = 10
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
"""Attempts at a rectangle that fits, range of its fraction of the area and of its height / width, as in torchvision."""

HUE_SHARE = 0.25  # Chen et al. 2020 (SimCLR): hue changes a quarter as much as the rest
JITTER = ("Brightness", "Contrast", "Color", "Hue")
"""Operations of colour jitter, in the order of its factors; "Color" is saturation, as in torchvision's policies."""

RAND_OPERATIONS, RAND_MAGNITUDE = 2, 9
BINS = {"trivial": 31, "rand": 31, "auto": 10}

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = tuple(np.uint64(bits) for bits in (30, 27, 31, 11))


def uniforms(key: int, indices: Ints, count: int) -> Floats:
    """`count` uniform numbers in [0, 1) for each index, [B, count]; a row depends on `key` and its own index alone.

    SplitMix64 (Steele et al. 2014): its outputs for `key` seed one generator for each index.
    """
    streams = _mixed(np.uint64(key) + (indices.astype(np.uint64)[:, None] + np.uint64(1)) * _INCREMENT)
    bits = _mixed(streams + np.arange(1, count + 1, dtype=np.uint64) * _INCREMENT)
    return (bits >> _SHIFTS[3]).astype(np.float64) * 2.0**-53


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits = (bits ^ (bits >> _SHIFTS[0])) * _FIRST
    bits = (bits ^ (bits >> _SHIFTS[1])) * _SECOND
    return bits ^ (bits >> _SHIFTS[2])


@dataclass(frozen=True)
class Operations:
    """One augmentation operation for each image of a batch.

    Attributes:
        names: as in torchvision's policies ("Rotate", "Identity", …), and "Hue"; length B.
        magnitudes: signed, in the operation's unit, [B]; for JITTER the factor minus 1, for "Hue" the shift.
    """

    names: list[str]
    magnitudes: Floats


class Draws:
    """Draws the random parameters of each augmentation, each from its own random stream.

    Args:
        augment: their ranges and probabilities.
        seed: of the run.
        size: height and width of the network's input, in pixels.
    """

    def __init__(self, augment: Augment, seed: int, size: Size) -> None:
        self.augment, self.seed, self.size = augment, seed, size
        self.ranges = augment.resized_crop_ranges()
        self._policy = None if augment.policy is None else _Policy(augment.policy, size)

    def crops(self, epoch: int, indices: Ints, heights: Ints, widths: Ints) -> Ints:
        """(top, left, height, width) of the random resized crops of images of these sizes, [B, 4].

        As in torchvision's RandomResizedCrop: the first of ATTEMPTS that fits, or the largest central crop. The range
        of width / height is relative to that of the input.
        """
        drawn = self._uniforms("crop", epoch, indices, 2 * ATTEMPTS + 2)
        input_height, input_width = self.size
        low, high = (bound * input_width / input_height for bound in self.ranges["ratio"])
        area = (heights * widths)[:, None] * _between(*self.ranges["scale"], drawn[:, :ATTEMPTS])
        ratio = np.exp(_between(math.log(low), math.log(high), drawn[:, ATTEMPTS : 2 * ATTEMPTS]))
        crop_widths, crop_heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (crop_widths > 0) & (crop_widths <= widths[:, None])
        fits &= (crop_heights > 0) & (crop_heights <= heights[:, None])
        first = np.arange(len(indices)), fits.argmax(1)
        height, width = crop_heights[first].astype(np.int64), crop_widths[first].astype(np.int64)
        top = _below(heights - height + 1, drawn[:, -2])
        left = _below(widths - width + 1, drawn[:, -1])
        crops = np.stack([top, left, height, width], 1)
        for row in np.flatnonzero(~fits[first]).tolist():
            crops[row] = _central(int(heights[row]), int(widths[row]), low, high)
        return crops

    def moves(self, epoch: int, indices: Ints) -> Ints:
        """(vertical offset, horizontal offset, flip vertically, flip horizontally) of padded crop and flips, [B, 4].

        The offsets are from -padding to padding; the crop comes before the flips.
        """
        padding = self.augment.random_crop_padding or 0
        moves = np.zeros((len(indices), 4), dtype=np.int64)
        if padding:
            moves[:, :2] = _below(2 * padding + 1, self._uniforms("shift", epoch, indices, 2)) - padding
        if self.augment.vertical_flip:
            moves[:, 2] = self._uniforms("vertical", epoch, indices, 1)[:, 0] < self.augment.vertical_flip
        if self.augment.horizontal_flip:
            moves[:, 3] = self._uniforms("horizontal", epoch, indices, 1)[:, 0] < self.augment.horizontal_flip
        return moves

    def operations(self, epoch: int, indices: Ints) -> list[Operations]:
        """The operations of the policy, then those of colour jitter, in the order in which to apply them."""
        steps: list[Operations] = []
        if self._policy is not None:
            steps += self._policy.draw(self._uniforms("policy", epoch, indices, _Policy.UNIFORMS))
        if self.augment.color_jitter:
            steps += self._jitter(self._uniforms("jitter", epoch, indices, 8))
        return steps

    def erased(self, epoch: int, indices: Ints) -> Ints:
        """(top, bottom, left, right) of the erased rectangles, [B, 4]; zeros for none."""
        input_height, input_width = self.size
        drawn = self._uniforms("erasing", epoch, indices, 2 * ATTEMPTS + 3)
        area = input_height * input_width * _between(*ERASED_AREA, drawn[:, :ATTEMPTS])
        low, high = ERASED_RATIO
        ratio = np.exp(_between(math.log(low), math.log(high), drawn[:, ATTEMPTS : 2 * ATTEMPTS]))
        crop_heights, crop_widths = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (crop_heights < input_height) & (crop_widths < input_width)
        first = np.arange(len(indices)), fits.argmax(1)
        height, width = crop_heights[first].astype(np.int64), crop_widths[first].astype(np.int64)
        top, left = _below(input_height - height + 1, drawn[:, -3]), _below(input_width - width + 1, drawn[:, -2])
        chosen = fits[first] & (drawn[:, -1] < self.augment.random_erasing)
        return np.stack([top, top + height, left, left + width], 1) * chosen[:, None]

    def _uniforms(self, purpose: str, epoch: int, indices: Ints, count: int) -> Floats:
        return uniforms(seed_of(self.seed, "augment", epoch, purpose), indices, count)

    def _jitter(self, drawn: Floats) -> list[Operations]:
        """Four operations in random order, with factors in [max(0, 1 - strength), 1 + strength]."""
        strength, hue = self.augment.color_jitter, min(0.5, self.augment.color_jitter * HUE_SHARE)
        changes = _between(max(-1.0, -strength), strength, drawn[:, :4])
        changes[:, 3] = _between(-hue, hue, drawn[:, 3])
        order = drawn[:, 4:].argsort(1)
        rows = np.arange(len(drawn))
        return [Operations([JITTER[kind] for kind in kinds], changes[rows, kinds]) for kinds in order.T]


class _Policy:
    """Draws operations as torchvision's TrivialAugmentWide, RandAugment or AutoAugment (ImageNet) do."""

    UNIFORMS = 6

    def __init__(self, name: str, size: Size) -> None:
        policy = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment, "auto": v2.AutoAugment}[name]()
        self.name = name
        self.names = list(augmentation_space(policy))
        bins = BINS[name]
        self.magnitudes = np.zeros((len(self.names), bins))
        self.signed = np.zeros(len(self.names), dtype=bool)
        for row, (magnitudes, signed) in enumerate(augmentation_space(policy).values()):
            values = magnitudes(bins, *size)
            if values is not None:
                self.magnitudes[row], self.signed[row] = values.numpy(), signed
        self.pairs = auto_augment_pairs(policy) if name == "auto" else []

    def draw(self, drawn: Floats) -> list[Operations]:
        """The operations for uniform numbers `drawn` [B, UNIFORMS], of which the last two determine the signs."""
        if self.name == "auto":
            return self._pairs(drawn)
        steps = []
        for step in range(RAND_OPERATIONS if self.name == "rand" else 1):
            kinds = _below(len(self.names), drawn[:, step])
            wide = self.name == "trivial"
            bins = _below(BINS["trivial"], drawn[:, 2]) if wide else np.full(len(drawn), RAND_MAGNITUDE)
            steps.append(self._operations(kinds, bins, drawn[:, 4 + step]))
        return steps

    def _pairs(self, drawn: Floats) -> list[Operations]:
        """AutoAugment: one pair of operations, each applied with its own probability."""
        chosen = [self.pairs[row] for row in _below(len(self.pairs), drawn[:, 0])]
        steps = []
        for step in range(2):
            parts = [pair[step] for pair in chosen]
            kinds = np.array([self.names.index(name) for name, _, _ in parts], dtype=np.int64)
            bins = np.array([part[2] or 0 for part in parts], dtype=np.int64)
            operations = self._operations(kinds, bins, drawn[:, 4 + step])
            skipped = drawn[:, 1 + step] > np.array([probability for _, probability, _ in parts])
            for row in np.flatnonzero(skipped).tolist():
                operations.names[row] = "Identity"
            steps.append(operations)
        return steps

    def _operations(self, kinds: Ints, bins: Ints, signs: Floats) -> Operations:
        sign = np.where(self.signed[kinds] & (signs <= 0.5), -1.0, 1.0)
        return Operations([self.names[kind] for kind in kinds], self.magnitudes[kinds, bins] * sign)


def _between(low: float, high: float, drawn: Floats) -> Floats:
    """Uniform numbers in [low, high)."""
    return low + (high - low) * drawn


def _below(count: Ints | int, drawn: Floats) -> Ints:
    """Uniform integers from 0 to count - 1."""
    return (drawn * count).astype(np.int64)


def _central(height: int, width: int, low: float, high: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest central crop whose width / height is in [low, high]."""
    crop_height, crop_width = height, width
    if width / height < low:
        crop_height = max(1, round(width / low))
    elif width / height > high:
        crop_width = max(1, round(height * high))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
