"""The network that is exported, the comparison of a written file with it, and the library that it comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from graft.errors import ExportError
from graft.learning.restore import Restored
from graft.models.families.base import Constructor
from graft.models.normalise import Normalise
from graft.models.registry import family_of

Run = Callable[[Tensor], Tensor]


class ExportedNetwork:
    """A network as it is exported.

    Args:
        restored: the network.
        preprocess: whether to include the normalisation. Then images are uint8 [B, 3, H, W], resized and cropped; else
            float32, normalised. Resizing is never included: what these formats have for it differs from Pillow's by up
            to one level a pixel, measured on 20 photographs of ants and bees as up to 0.39 in SqueezeNet's logits, and
            2 of the 20 got another class.

    Attributes:
        module: evaluation-mode network from an input called `images` to logits [B, C], on the CPU.
        prepare: uint8 images [B, 3, H, W] -> the input of `module`.
    """

    def __init__(self, restored: Restored, preprocess: bool) -> None:
        self.restored = restored
        self.preprocess = preprocess
        normalise = Normalise(restored.preprocessing)
        self.module = Images(restored.network, normalise if preprocess else nn.Identity()).eval()
        self.prepare: Run = nn.Identity() if preprocess else normalise

    @cached_property
    def origin(self) -> Constructor:
        """How the network is made outside of Graft, where its library has one with these tensors."""
        recipe, network = self.restored.recipe, self.restored.network
        return family_of(recipe).constructor(recipe, network, len(self.restored.classes))

    def example(self) -> Tensor:
        """An input of `module`: two black images."""
        return self.prepare(torch.zeros(2, 3, *self.restored.preprocessing.size, dtype=torch.uint8))

    def weights(self) -> dict[str, Tensor]:
        """The state dict of the network, without the normalisation."""
        return {name: tensor.contiguous() for name, tensor in self.restored.network.state_dict().items()}


class Images(nn.Module):
    """A network whose input is called `images`, with a step before it."""

    def __init__(self, network: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.network, self.first = network, first

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.first(images))


@dataclass(frozen=True)
class Verification:
    """How the logits of a file compare with the original's.

    Attributes:
        images: number of images compared.
        largest_difference: between two logits, absolute.
    """

    images: int
    largest_difference: float


def verify(run: Run, network: ExportedNetwork, images: Tensor, tolerance: float, file: str) -> Verification:
    """Compare what was read back with the original, in batches of one and of several images.

    Args:
        run: what was read back.
        network: the original.
        images: uint8 [N, 3, H, W], real ones.
        tolerance: of the logits, absolute.
        file: for the error message.

    Raises:
        ExportError: logits of another shape, logits that differ by more, or an image with another most probable class.
    """
    largest = 0.0
    with torch.inference_mode():
        for batch in (images[:1], *images[1:].split(8)):
            inputs = network.prepare(batch)
            theirs, ours = run(inputs), network.module(inputs)
            if theirs.shape != ours.shape:
                shapes = f"{list(theirs.shape)} instead of {list(ours.shape)}"
                raise ExportError(f"{file}: gives logits of the shape {shapes}, and is not kept.")
            difference = float((theirs - ours).abs().max())
            largest = max(largest, difference)
            others = int((theirs.argmax(1) != ours.argmax(1)).sum())
            if not difference <= tolerance or others:
                raise ExportError(
                    f"{file}: does not compute what the checkpoint does, and is not kept. Of logits up to "
                    f"{float(ours.abs().max()):.2g} some differ by {difference:.2g} (tolerance={tolerance:g}), and "
                    f"{others} of {len(batch)} images get another class."
                )
    return Verification(len(images), largest)
