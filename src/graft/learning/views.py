"""How test-time augmentation looks at an image."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError

View = Callable[[Tensor, int], list[Tensor]]

ONE_LOOK = ("identity",)
"""The image as it is."""


def wanted_views(tta: bool, views: Sequence[str]) -> tuple[str, ...]:
    """How each image is looked at, by the keys `tta` and `views` of a configuration."""
    return tuple(views) if tta else ONE_LOOK


def mean_of_views(logits_of: Callable[[Tensor], Tensor], images: Tensor, views: Sequence[str], size: int) -> Tensor:
    """Logits float32 [B, C] of images [B, 3, R, R], each looked at in all `views`, keys of `VIEWS`.

    Of several views: the logarithm of the mean of their probabilities, whose softmax is that mean. Probabilities rather
    than logits are averaged (as Krizhevsky et al. 2012 do): each view then weighs the same however large its logits
    are, and the loss is at most the mean of the views' losses (Jensen).

    Args:
        logits_of: logits float32 [B, C] of images [B, 3, S, S].
        images: as `with_margin` prepares them.
        views: names.
        size: S.
    """
    looks = [look for name in views for look in VIEWS[name](images, size)]
    if len(looks) == 1:
        return logits_of(looks[0])
    # at once: a network that replays a CUDA graph overwrites what it has given before
    logarithms = [logits_of(look).log_softmax(1) for look in looks]
    return torch.stack(logarithms).logsumexp(0) - math.log(len(looks))


def _centre(images: Tensor, size: int) -> list[Tensor]:
    top, left = ((side - size) // 2 for side in images.shape[2:])
    return [images[:, :, top : top + size, left : left + size]]


def _corners(images: Tensor, size: int) -> list[Tensor]:
    return [images[:, :, y, x] for y in (slice(size), slice(-size, None)) for x in (slice(size), slice(-size, None))]


def _shifts(images: Tensor, size: int) -> list[Tensor]:
    """Up and left, down and right by a thirty-second of the side, the border mirrored (Jordan 2024)."""
    (centre,) = _centre(images, size)
    straight = torch.arange(size, device=images.device)
    step = max(1, round(size / 32))
    seen = [(straight - step).abs(), size - 1 - (size - 1 - straight - step).abs()]
    return [centre[:, :, where][:, :, :, where] for where in seen]


def _mirrored(view: View) -> View:
    return lambda images, size: [each.flip(3) for each in view(images, size)]


VIEWS: dict[str, View] = {
    "identity": _centre,
    "hflip": _mirrored(_centre),
    "corners": _corners,
    "hflip_corners": _mirrored(_corners),
    "shifts": _shifts,
    "hflip_shifts": _mirrored(_shifts),
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
            f"({preprocessing.input_size} pixels) here.\nLeave them out, or give fit=crop and a larger resize_size: "
            "keys of preprocess, or of data.preprocess in graft train."
        )
    return preprocessing.changed(
        {"input_size": preprocessing.resize_size, "resize_size": preprocessing.resize_size}, ""
    )
