"""Passes of a network's frozen layers over images, as the feature cache stores their outputs."""

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import PIL
import torch
import torchvision
from rich.progress import Progress
from torch import Tensor, nn

from graft.data.datasets import Batch
from graft.models.normalise import is_channels_last
from graft.system.terminal import PlainConsole

BATCHES = {"cpu": 8}
BATCH = 32
"""Images per pass on a kind of device, and on all others. Every pass has exactly this number: the last bits of an
image's features depend on the number of images in its batch, but not on which they are or in what order (checked for
convolutions and linear layers in fp32 and bf16), and runs share what each computes. On a CPU 8 are as fast as 32."""


class FeaturePass:
    """Runs frozen layers of a network over images, with the device and the precision of a Trainer.

    Args:
        network: with its weights.
        normalise: uint8 images -> those that the network takes, on the Trainer's device.
        trainer: its device and precision are used.
    """

    def __init__(self, network: nn.Module, normalise: Callable[[Tensor], Tensor], trainer: pl.Trainer) -> None:
        self.network, self.normalise, self.trainer = network, normalise, trainer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.trainer.strategy.root_device

    @property
    def batch_size(self) -> int:
        """Images in each pass."""
        return BATCHES.get(self.device.type, BATCH)

    def key(self, layers: str, pixels: Mapping[str, Any]) -> dict[str, Any]:
        """Everything besides the image that determines the bytes of its features.

        Args:
            layers: fingerprint of the layers.
            pixels: of `ImageDataModule.pixels_of`.
        """
        return {
            "prefix": layers,
            **pixels,
            "precision": str(self.trainer.precision),
            "matmul": torch.get_float32_matmul_precision(),
            "channels_last": is_channels_last(self.network),
            "device": self.device.type,
            "batch": self.batch_size,
            "versions": [torch.__version__, torchvision.__version__, PIL.__version__],
        }

    @contextlib.contextmanager
    def computing(self, *, training: bool = False) -> Iterator[None]:
        """Context in which the network has the device and the precision of the Trainer, and this mode."""
        self.network.to(self.device)
        modes = [(module, module.training) for module in self.network.modules()]
        self.network.train(training)
        try:
            with self.trainer.precision_plugin.forward_context():
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    def outputs(
        self, layers: Callable[..., tuple[Tensor, ...]], batches: Iterable[Batch], title: str
    ) -> Generator[tuple[Batch, tuple[Tensor, ...]], None, None]:
        """(batch, outputs of `layers` for its images) of each batch, with a progress bar; within `computing`.

        Args:
            layers: (network, normalised images) -> tensors, each [B, ...].
            batches: of at most `batch_size` images.
            title: of the progress bar.
        """
        console = PlainConsole(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar, torch.no_grad():
            for batch in bar.track(batches, description=title):
                images = self.normalise(_filled(batch.images, self.batch_size).to(self.device))
                yield batch, tuple(tensor[: len(batch.images)] for tensor in layers(self.network, images))


def _filled(images: Tensor, count: int) -> Tensor:
    """A batch of `count` images: `images` and, if there are fewer, repetitions of the last."""
    if len(images) == count:
        return images
    filler = images[-1:].expand(count - len(images), -1, -1, -1)
    return torch.cat([images, filler]).contiguous(memory_format=torch.channels_last)
