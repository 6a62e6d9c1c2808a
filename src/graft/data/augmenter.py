"""Augmentation of single images and of batches, in memory or on a GPU, with the same result."""

import contextlib
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from graft.config.targets import TARGET, bind, build
from graft.data import operations
from graft.data.augment import BATCH_ARGUMENTS, PURPOSE, Augment
from graft.data.draws import Draws, Ints
from graft.data.preprocessing import Preprocessing
from graft.data.transforms import Picture, as_pixels, eval_transform, pixel_type, resized
from graft.errors import ConfigError, DataError, GraftError
from graft.seeding import seeded_everywhere


def to_device(array: npt.NDArray[Any], device: torch.device | None) -> Any:
    """`array` as a tensor on `device`, copied without waiting for the GPU; unchanged if `device` is None."""
    if device is None:
        return array
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Augmenter:
    """Augments images with the random parameters that `Draws` gives for (seed, epoch, index).

    Args:
        augment: the configuration.
        seed: of the run.
        preprocessing: input size, interpolation, and the mean colour that erased pixels get.
        device: of the images; None: NumPy arrays in main memory, because starting torch's threads costs more than it
            gains.
    """

    def __init__(
        self, augment: Augment, seed: int, preprocessing: Preprocessing, device: torch.device | None = None
    ) -> None:
        self.augment, self.preprocessing, self.device = augment, preprocessing, device
        self.size = preprocessing.size
        self.draws = Draws(augment, seed, self.size)
        self._interpolation = InterpolationMode(preprocessing.interpolation)
        self._resize_and_crop = eval_transform(preprocessing)
        self._shifts_or_flips = bool(augment.random_crop_padding or augment.horizontal_flip or augment.vertical_flip)
        self._positions_1d = tuple(self._to_device(np.arange(side)) for side in self.size)
        levels = np.uint8 if pixel_type(preprocessing.image_format) == torch.uint8 else np.uint16
        self._colour = self._to_device(np.array(preprocessing.mean_colour, dtype=levels))
        self._transforms = CustomTransforms(augment, seed) if augment.transforms else None

    @property
    def _library(self) -> Any:  # an attribute could not be sent to worker processes
        return np if self.device is None else torch

    def picture(self, picture: Picture, epoch: int, index: int) -> Tensor:
        """One image, augmented in main memory: uint8 or uint16 [C, H, W].

        Random crops are resized by torchvision, which is three times as fast as PIL and differs by at most one grey
        level (bicubic: two).
        """
        indices = np.array([index])
        if self.augment.random_resized_crop is None:
            image = self._resize_and_crop(picture)
        else:
            whole = as_pixels(picture)
            _, height, width = whole.shape
            crop = self.draws.crops(epoch, indices, np.array([height]), np.array([width]))
            top, left, crop_height, crop_width = crop[0].tolist()
            # torchvision resizes a contiguous channels-last image in half the time
            cut = whole.permute(1, 2, 0)[top : top + crop_height, left : left + crop_width]
            cut = cut.contiguous().permute(2, 0, 1)
            if self.preprocessing.image_format.is_rgb:
                image = functional.resize(cut, list(self.size), self._interpolation, antialias=True)
            else:
                image = resized(cut, self.size, self.preprocessing.interpolation)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())[None]
        return torch.from_numpy(self.batch(pixels, np.zeros(1, dtype=np.int64), epoch, indices)[0]).permute(2, 0, 1)

    def batch(self, pixels: Any, rows: Ints, epoch: int, indices: Ints) -> Any:
        """Augmented copies, uint8 or uint16 [B, H, W, C] on the device, of the `rows` of `pixels` [N, H, W, C].

        Each is shifted, flipped, distorted and erased with the random parameters of its index.
        """
        images = self._shifted(pixels, rows, self.draws.moves(epoch, indices) if self._shifts_or_flips else None)
        steps = self.draws.operations(epoch, indices)
        if steps:
            device = self.device or torch.device("cpu")
            changed = operations.apply(
                torch.as_tensor(images),
                steps,
                self._interpolation.value,
                lambda array: to_device(array, device),
                colours=self.preprocessing.image_format.is_rgb,
            )
            images = changed.numpy() if self.device is None else changed
        spans = self.draws.erased(epoch, indices) if self.augment.random_erasing else None
        if spans is not None and spans.any():
            images = self._erased(images, spans)
        return images if self._transforms is None else self._transformed(images, epoch, indices)

    def _transformed(self, images: Any, epoch: int, indices: Ints) -> Any:
        """The images after `augment.transforms`, [B, H, W, C], on the device."""
        assert self._transforms is not None
        changed = self._transforms(torch.as_tensor(images).permute(0, 3, 1, 2), epoch, indices)
        changed = changed.permute(0, 2, 3, 1).contiguous()
        return changed.numpy() if self.device is None else changed

    def _shifted(self, pixels: Any, rows: Ints, moves: Ints | None) -> Any:
        """The shifted and flipped images, by looking up the source row and column of each output pixel."""
        if moves is None:
            return pixels[self._to_device(rows)]
        if self.device is None and len(rows) == 1 and not moves[0, :2].any():  # ten times as fast as the lookup
            image = pixels[rows]
            bits = image.view(np.int16) if image.dtype == np.uint16 else image  # torch 2.9 cannot flip uint16
            axes = [axis - 1 for axis in (2, 3) if moves[0, axis]]
            return torch.from_numpy(bits).flip(axes).numpy().view(image.dtype)
        table = self._to_device(np.concatenate([rows[:, None], moves], 1))
        ys, xs = (
            self._source_positions(positions, table[:, axis : axis + 1], table[:, axis + 2 : axis + 3])
            for axis, positions in enumerate(self._positions_1d, 1)
        )
        height, width = self.size
        source = (table[:, :1, None] * height + ys[:, :, None]) * width + xs[:, None, :]  # [B, H, W]
        colours = pixels.reshape(-1, pixels.shape[-1])
        return colours.take(source, axis=0) if self.device is None else colours[source]  # NumPy's take is faster

    def _source_positions(self, outputs: Any, offsets: Any, flips: Any) -> Any:
        """The source position of each output position, from 0 to S - 1, reflected at the border: [B, S]."""
        where, size = self._library.where, len(outputs)
        positions = where(flips > 0, size - 1 - outputs, outputs) + offsets
        period = max(2 * (size - 1), 1)
        folded = positions % period
        return where(folded < size, folded, period - folded)

    def _erased(self, images: Any, spans: Ints) -> Any:
        table = self._to_device(spans)
        inside_y, inside_x = (
            (table[:, first : first + 1] <= positions) & (positions < table[:, first + 1 : first + 2])
            for first, positions in zip((0, 2), self._positions_1d, strict=True)
        )
        return self._library.where((inside_y[:, :, None] & inside_x[:, None, :])[..., None], self._colour, images)

    def _to_device(self, array: npt.NDArray[Any]) -> Any:
        return to_device(array, self.device)


@dataclass(frozen=True)
class _Step:
    """One of `augment.transforms`, built.

    Attributes:
        name: its key and target, for messages.
        built: what the target builds.
        function: what is called with an image or, if `batched`, with a batch.
        batched: whether `built` has a method `batch`.
        supplied: names of the arguments that it gets besides.
    """

    name: str
    built: Any
    function: Callable[..., Any]
    batched: bool
    supplied: frozenset[str]


class CustomTransforms:
    """The transforms of `augment.transforms`, built once.

    Where all of them have a method `batch`, it is called with whole batches on their device; otherwise the images are
    transformed one by one on the CPU. Both give an image the same bits: its draws depend on (seed, epoch, index) alone.

    Args:
        augment: its transforms.
        seed: of the run.

    Raises:
        ConfigError: a transform refuses its arguments.
    """

    def __init__(self, augment: Augment, seed: int) -> None:
        self.seed = seed
        self._steps: list[_Step] = []
        for number, node in enumerate(augment.transforms):
            key = f"augment.transforms[{number}]"
            built: Any = bind(key, node) if node.get("_partial_") else build(key, node)
            batched = callable(getattr(built, "batch", None))
            if not batched and not callable(built):
                raise ConfigError(
                    f"{key}.{TARGET}={node[TARGET]}: builds a {type(built).__name__}, which cannot be called with an "
                    "image.\nFor a function that takes the image itself add _partial_: true."
                )
            function = built.batch if batched else built
            supplied = (BATCH_ARGUMENTS if batched else PURPOSE) & _parameters(function)
            self._steps.append(_Step(f"{key} ({node[TARGET]})", built, function, batched, supplied))

    def __call__(self, images: Tensor, epoch: int, indices: Ints) -> Tensor:
        """The images of these indices in `epoch`, [B, C, H, W], after all transforms, on the same device.

        Raises:
            DataError: a transform fails, or returns anything but images of the same type and shape; names it.
        """
        with _one_thread(), torch.no_grad():
            if all(step.batched for step in self._steps):
                return self._batch(images, epoch, indices).to(images.device)
            changed = [self._image(image, epoch, index) for image, index in zip(images.cpu(), indices, strict=True)]
        return torch.stack(changed).to(images.device)

    def _batch(self, images: Tensor, epoch: int, indices: Ints) -> Tensor:
        supplied = {"seed": self.seed, "epoch": epoch, "indices": indices}
        for step in self._steps:
            images = _checked(step, images, supplied)
        return images

    def _image(self, image: Tensor, epoch: int, index: np.int64) -> Tensor:
        image = image.contiguous()
        single = {"seed": self.seed, "epoch": epoch, "index": int(index)}
        batch = {"seed": self.seed, "epoch": epoch, "indices": np.array([index])}
        with seeded_everywhere(self.seed, "augment", epoch, "transforms", int(index)):
            for step in self._steps:
                image = _checked(step, image[None], batch)[0] if step.batched else _checked(step, image, single)
        return image

    def source_digests(self) -> list[str]:
        """SHA-256 (hex) of the source file of each transform, because a later version may compute something else."""
        digests = []
        for step in self._steps:
            built = getattr(step.built, "func", step.built)  # of a partial
            module = sys.modules[built.__module__ if hasattr(built, "__qualname__") else type(built).__module__]
            file = getattr(module, "__file__", None)
            digests.append("" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest())
        return digests


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Context with one torch thread, as in a worker process; the last bits of a sum can depend on it."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _parameters(step: Callable[..., Any]) -> frozenset[str]:
    """Names of the parameters of a transform."""
    try:
        return frozenset(inspect.signature(step.forward if isinstance(step, nn.Module) else step).parameters)
    except (TypeError, ValueError):  # a function written in C
        return frozenset()


def _checked(step: _Step, image: Tensor, supplied: Mapping[str, Any]) -> Tensor:
    """The result of a transform for an image [C, H, W] or a batch [B, C, H, W], which must have the same shape."""
    try:
        changed = step.function(image, **{name: supplied[name] for name in step.supplied})
    except GraftError:
        raise
    except Exception as error:  # of somebody else's code
        raise DataError(f"{step.name}: failed on an image ({type(error).__name__}: {error}).") from error
    if not isinstance(changed, Tensor) or changed.dtype != image.dtype or changed.shape != image.shape:
        found = (
            f"a {str(changed.dtype).removeprefix('torch.')} tensor {list(changed.shape)}"
            if isinstance(changed, Tensor)
            else f"a {type(changed).__name__}"
        )
        raise DataError(
            f"{step.name}: returned {found}, where a {str(image.dtype).removeprefix('torch.')} tensor "
            f"{list(image.shape)} is expected: the size of the "
            "input is data.preprocess's, and Graft normalises after augmentation."
        )
    return changed
