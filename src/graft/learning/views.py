"""Views: the variants of an image whose predictions test-time augmentation averages.

A view is a function, named by `views.NAME._target_`:

    def rotations(images: Tensor) -> list[Tensor]:
        return [images.rot90(turns, (2, 3)) for turns in (1, 2, 3)]

It gets uint8 images [B, 3, H, W] on the device and returns variants of the same shape. A view that crops for itself
takes a second argument, `size`: it gets larger images with the margin that resizing leaves around the central
crop and (H, W), the size of that crop, and returns variants [B, 3, H, W]. Its other arguments are the other keys of
`views.NAME`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from graft.config.targets import bind
from graft.data.preprocessing import Preprocessing, Size, shown_size
from graft.errors import ConfigError

View = Callable[..., Sequence[Tensor]]


def identity(images: Tensor) -> list[Tensor]:
    """The image itself."""
    return [images]


def hflip(images: Tensor) -> list[Tensor]:
    """The image mirrored left to right."""
    return [images.flip(3)]


def corners(images: Tensor, size: Size) -> list[Tensor]:
    """The crops at the four corners; with `identity` and the mirror images, the ten crops of Krizhevsky et al. 2012."""
    ys, xs = ((slice(side), slice(-side, None)) for side in size)
    return [images[:, :, y, x] for y in ys for x in xs]


def hflip_corners(images: Tensor, size: Size) -> list[Tensor]:
    """The crops at the four corners, mirrored left to right."""
    return [crop.flip(3) for crop in corners(images, size)]


IDENTITY: Mapping[str, View] = {"identity": identity}
"""The views of an evaluation without test-time augmentation."""


def build_views(tta: bool, views: Mapping[str, Mapping[str, Any]]) -> Mapping[str, View]:
    """The views of an evaluation, by name.

    Args:
        tta: whether there is test-time augmentation; without it the images are evaluated as they are.
        views: name -> `_target_` and its arguments.

    Raises:
        ConfigError: a target that cannot be imported.
    """
    if not tta:
        return IDENTITY
    return {name: _unwrap(bind(f"views.{name}", node)) for name, node in views.items()}


def _unwrap(view: Any) -> View:
    """The function itself where no argument is bound, so that views compare equal."""
    plain = isinstance(view, partial) and not view.args and not view.keywords
    return view.func if plain else view


def takes_margin(view: View) -> bool:
    """Whether a view crops for itself: whether it takes the argument `size`."""
    return "size" in inspect.signature(view).parameters


def mean_of_views(
    logits_of: Callable[[Tensor], Tensor], images: Tensor, views: Mapping[str, View], size: Size
) -> Tensor:
    """Logits float32 [B, C] of images, averaged over all variants that the views make of them.

    Of several variants: the logarithm of the mean of their probabilities, whose softmax is that mean. Probabilities
    rather than logits are averaged (as Krizhevsky et al. 2012 do): each variant then weighs the same however large its
    logits are, and the loss is at most the mean of the variants' losses (Jensen).

    Args:
        logits_of: logits float32 [B, C] of images [B, 3, H, W].
        images: as `with_margin` prepares them.
        views: by name.
        size: (H, W) of the network's input.

    Raises:
        ConfigError: a view returns something else than a list of images of that size.
    """
    variants = variants_of(images, views, size)
    if len(variants) == 1:
        return logits_of(variants[0])
    # log_softmax copies at once: a network that replays a CUDA graph overwrites its earlier output
    return log_mean_exp([logits_of(variant).log_softmax(1) for variant in variants])


def variants_of(images: Tensor, views: Mapping[str, View], size: Size) -> list[Tensor]:
    """All variants [B, 3, H, W] that the views make of images; see `mean_of_views`."""
    height, width = size
    top, left = ((whole - side) // 2 for whole, side in zip(images.shape[2:], size, strict=True))
    centre = images[:, :, top : top + height, left : left + width]
    variants: list[Tensor] = []
    for name, view in views.items():
        made = view(images, size=size) if takes_margin(view) else view(centre)
        if not isinstance(made, list | tuple) or any(getattr(each, "shape", ()) != centre.shape for each in made):
            raise ConfigError(f"views.{name}: must return a list of images of the shape {list(centre.shape)}.")
        variants += made
    return variants


def log_mean_exp(logarithms: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the probabilities of which these are the logarithms, each [B, C]."""
    return torch.stack(list(logarithms)).logsumexp(0) - math.log(len(logarithms))


def with_margin(preprocessing: Preprocessing, views: Mapping[str, View]) -> Preprocessing:
    """The preprocessing that the views need: where one takes a margin, without the central crop after resizing.

    Raises:
        ConfigError: a view takes a margin, but images are resized to exactly the size of the input.
    """
    names = [name for name, view in views.items() if takes_margin(view)]
    if not names:
        return preprocessing
    if preprocessing.fit != "crop" or preprocessing.box == preprocessing.size:
        raise ConfigError(
            f"views=[{','.join(views)}]: {' and '.join(names)} need a margin, but images are resized to exactly the "
            f"size of the input ({shown_size(preprocessing.input_size)} pixels) here.\n"
            "Leave them out, or set fit=crop and a larger resize_size: keys of preprocess, or of data.preprocess in "
            "graft train."
        )
    return preprocessing.changed({"input_size": preprocessing.box, "resize_size": preprocessing.resize_size}, "")
