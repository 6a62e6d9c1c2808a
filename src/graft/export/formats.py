"""The network that is exported, the comparison of a written file with it, and the library that it comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from graft.config.task import SINGLE_LABEL
from graft.data.transforms import black
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
        preprocess: whether to include the normalisation. Then images are levels [B, C, H, W], resized and cropped; else
            float32, normalised. Resizing is never included: what these formats have for it differs from Pillow's by up
            to one level a pixel, measured on 20 photographs of ants and bees as up to 0.39 in SqueezeNet's logits, and
            2 of the 20 got another class.

    Attributes:
        module: evaluation-mode network from an input called `images` to logits [B, C], on the CPU.
        prepare: levels [B, C, H, W] -> the input of `module`.
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
        family = family_of(recipe)
        made = family.constructor(recipe, network, len(self.restored.classes))
        return made if self.restored.task is SINGLE_LABEL else replace(made, removed=family.bounds(network))

    def example(self) -> Tensor:
        """An input of `module`: two black images."""
        return self.prepare(black(self.restored.preprocessing, 2))

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
        images: levels [N, C, H, W], real ones.
        tolerance: of the logits, absolute.
        file: for the error message.

    Raises:
        ExportError: logits of another shape, logits that differ by more, or an image with another most probable class
            (with several labels per image: other labels, where a logit is not as near to the threshold as that).
    """
    largest, thresholds = 0.0, network.restored.thresholds
    with torch.inference_mode():
        for batch in (images[:1], *images[1:].split(8)):
            inputs = network.prepare(batch)
            theirs, ours = run(inputs), network.module(inputs)
            if theirs.shape != ours.shape:
                shapes = f"{list(theirs.shape)} instead of {list(ours.shape)}"
                raise ExportError(f"{file}: gives logits of the shape {shapes}, and is not kept.")
            difference = float((theirs - ours).abs().max())
            largest = max(largest, difference)
            others = int(_decided_otherwise(theirs, ours, thresholds, tolerance).sum())
            if not difference <= tolerance or others:
                raise ExportError(
                    f"{file}: does not compute what the checkpoint does, and is not kept. Of logits up to "
                    f"{float(ours.abs().max()):.2g} some differ by {difference:.2g} (tolerance={tolerance:g}), and "
                    f"{others} of {len(batch)} images get another class."
                )
    return Verification(len(images), largest)


def _decided_otherwise(theirs: Tensor, ours: Tensor, thresholds: Sequence[float] | None, tolerance: float) -> Tensor:
    """Whether logits [B, C] give each image other decisions, bool [B]; see `verify`."""
    if thresholds is None:
        return theirs.argmax(1) != ours.argmax(1)
    limits = torch.tensor(thresholds).logit()
    differ = (theirs >= limits) != (ours >= limits)
    return (differ & ((ours - limits).abs() > tolerance)).any(1)
