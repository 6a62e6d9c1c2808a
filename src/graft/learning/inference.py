"""Inference with a restored network: uint8 images in, logits out, in the precision and memory format of training."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graft.data.transforms import for_computing
from graft.errors import ConfigError
from graft.learning.decisions import ONE_CLASS, Decisions, decisions_of
from graft.learning.restore import Restored
from graft.learning.views import IDENTITY, View, mean_of_views, with_margin
from graft.models.normalise import Normalise, is_channels_last
from graft.system.allocator import reuse_freed_memory
from graft.system.device import Device

AUTOCAST = {"bf16-mixed": torch.bfloat16, "bf16": torch.bfloat16, "16-mixed": torch.float16, "16": torch.float16}
FULL = ("32-true", "32")
"""Lightning's names of the precisions that inference supports."""


class Inference:
    """Computes logits as the test of a training run does, to the bit on the same machine.

    Args:
        restored: the network and its preprocessing.
        device: where to compute, and in which precision.
        channels_last: lay convolutions out channels-last.
        views: by name.

    Attributes:
        classes, source: of the network.
        decisions: of its task.
        thresholds: of the labels, with several per image; else None.
        preparation: the preprocessing of the images that it is called with; it leaves the margin that the views need.

    Raises:
        ConfigError: an unknown precision, or a view needs a margin that the preprocessing does not leave.
    """

    def __init__(
        self, restored: Restored, device: Device, *, channels_last: bool, views: Mapping[str, View] = IDENTITY
    ) -> None:
        if device.precision not in (*AUTOCAST, *FULL):
            supported = ", ".join((*FULL, *AUTOCAST))
            raise ConfigError(f"trainer.precision={device.precision}: for training only. Inference has {supported}.")
        self.device = device.root
        self.classes, self.source = restored.classes, restored.source
        self.decisions, self.thresholds = decisions_of(restored.task), restored.thresholds
        self.preparation = with_margin(restored.preprocessing, views)
        self.size = restored.preprocessing.size
        self.views = dict(views)
        self.normalise = Normalise(restored.preprocessing).to(self.device)
        layout = torch.channels_last if channels_last else torch.preserve_format
        self.network = restored.network.to(self.device).to(memory_format=layout)
        self.channels_last = is_channels_last(self.network)
        self.autocast: Callable[[], Any] = contextlib.nullcontext
        if device.precision in AUTOCAST:
            low = AUTOCAST[device.precision] if self.device.type != "cpu" else torch.bfloat16  # as Lightning
            self.autocast = lambda: torch.autocast(self.device.type, low)

    def many(self) -> contextlib.AbstractContextManager[None]:
        """A context for a loop of calls: on the CPU each call reuses the memory of the previous one."""
        return reuse_freed_memory(self.device.type == "cpu")

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Levels, as `preparation` makes them, to logits float32 [B, C] on the device: `mean_of_views`."""
        images = for_computing(images.to(self.device, non_blocking=True))
        return mean_of_views(self._logits, images, self.views, self.size, self.decisions)

    def _logits(self, images: Tensor) -> Tensor:
        with self.autocast():
            images = self.normalise(images)
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            return self.network(images).float()


def most_probable(logits: Tensor, count: int, decisions: Decisions = ONE_CLASS) -> tuple[Tensor, Tensor]:
    """Probabilities and labels of the `count` most probable classes, best first, each [B, count].

    Of classes with the same logit the first comes first, as with `argmax`, which decides what accuracy counts; half
    precision has many such ties, and the order that `topk` gives them is arbitrary.
    """
    labels = logits.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return decisions.probabilities(logits).gather(1, labels), labels
