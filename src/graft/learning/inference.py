"""A restored network at work: bytes in, logits out, in the precision and memory format of training."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graft.errors import ConfigError
from graft.learning.device import Device
from graft.learning.heap import freed_memory_kept
from graft.learning.restore import Restored
from graft.models.normalise import Normalise, is_channels_last
from graft.preprocessing import Preprocessing

AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
FULL = ("32-true", "32")
"""Lightning's names of the precisions that make sense here."""

View = Callable[[Tensor, int], list[Tensor]]


class Inference:
    """Computes logits as the test of a training run does, to the bit on the same machine.

    Args:
        restored: the network and its preprocessing.
        device: where to compute, and in which precision.
        channels_last: lay convolutions out channels-last.
        views: how an image is looked at, keys of `VIEWS`; with more than one, images come as `with_margin` prepares
            them.

    Raises:
        ConfigError: an unknown precision.
    """

    def __init__(
        self, restored: Restored, device: Device, *, channels_last: bool, views: Sequence[str] = ("identity",)
    ) -> None:
        if device.precision not in (*AUTOCAST, *FULL):
            there = ", ".join((*FULL, *AUTOCAST))
            raise ConfigError(f"trainer.precision={device.precision}: not without training. There are {there}.")
        self.place = device.root
        self.size = restored.preprocessing.input_size
        self.views = tuple(views)
        self.normalise = Normalise(restored.preprocessing).to(self.place)
        layout = torch.channels_last if channels_last else torch.preserve_format
        self.network = restored.network.to(self.place).to(memory_format=layout)
        self.channels_last = is_channels_last(self.network)
        self.autocast: Callable[[], Any] = contextlib.nullcontext
        if device.precision in AUTOCAST:
            low = AUTOCAST[device.precision] if self.place.type != "cpu" else torch.bfloat16  # as Lightning
            self.autocast = lambda: torch.autocast(self.place.type, low)

    def many(self) -> contextlib.AbstractContextManager[None]:
        """For a loop of calls on the CPU: each reuses the memory of the one before."""
        return freed_memory_kept(self.place.type == "cpu")

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, S, S] to logits float32 [B, C], on the device.

        With several views: the logarithm of the mean of their probabilities, whose softmax is that mean. Probabilities
        rather than logits are averaged (as Krizhevsky et al. 2012 do): each view then weighs the same however large its
        logits are, and the loss is at most the mean of the views' losses (Jensen).
        """
        images = images.to(self.place, non_blocking=True)
        seen = [view for name in self.views for view in VIEWS[name](images, self.size)]
        logits = [self._logits(view) for view in seen]
        if len(logits) == 1:
            return logits[0]
        logarithms = torch.stack([each.log_softmax(1) for each in logits])
        return logarithms.logsumexp(0) - torch.tensor(float(len(logits))).log()

    def _logits(self, images: Tensor) -> Tensor:
        with self.autocast():
            images = self.normalise(images)
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            return self.network(images).float()


def _centre(images: Tensor, size: int) -> list[Tensor]:
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return [images[:, :, top : top + size, left : left + size]]


def _corners(images: Tensor, size: int) -> list[Tensor]:
    return [images[:, :, y, x] for y in (slice(size), slice(-size, None)) for x in (slice(size), slice(-size, None))]


def _mirrored(view: View) -> View:
    return lambda images, size: [each.flip(3) for each in view(images, size)]


VIEWS: dict[str, View] = {
    "identity": _centre,
    "hflip": _mirrored(_centre),
    "corners": _corners,
    "hflip_corners": _mirrored(_corners),
}
"""How test-time augmentation looks at a square image [B, 3, R, R], R >= S: name -> views, each [B, 3, S, S]."""


def with_margin(preprocessing: Preprocessing, views: Sequence[str]) -> Preprocessing:
    """The preprocessing that leaves the views enough to choose from: for corners, the resized image's whole centre.

    Raises:
        ConfigError: corners are wanted of images that are resized to the input's very size.
    """
    if not any(name.endswith("corners") for name in views):
        return preprocessing
    if preprocessing.fit != "crop" or preprocessing.resize_size == preprocessing.input_size:
        raise ConfigError(
            f"views=[{','.join(views)}]: corners need a margin, but images are resized to the input's very size "
            f"({preprocessing.input_size} pixels) here.\nLeave them out, or give preprocess.resize_size."
        )
    return preprocessing.changed(
        {"input_size": preprocessing.resize_size, "resize_size": preprocessing.resize_size}, ""
    )
