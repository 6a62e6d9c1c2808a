"""The loss of a run: torch's cross-entropy, or any other module or function of logits and targets."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graft.config.schema import LossConfig
from graft.config.targets import accepts, bind, build
from graft.errors import ConfigError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Float32 logits [B, C] and class indices [B] to one number; or, with MixUp and CutMix, probabilities [B, C], and with
several labels per image zeros and ones [B, C] as float32."""

CROSS_ENTROPY = "torch.nn.CrossEntropyLoss"


def build_loss(
    cfg: LossConfig,
    class_weights: Sequence[float] | None = None,
    class_counts: Callable[[], Sequence[int]] | None = None,
    positive_weights: Sequence[float] | None = None,
) -> Loss:
    """The loss of `cfg`: a module that is built, or a function with its other arguments bound.

    Args:
        cfg: the group `loss`.
        class_weights: one factor per class, which the loss gets as `weight`.
        class_counts: gives the number of training images of each class, which the loss gets as `class_counts` if it
            takes an argument of that name and the configuration does not give it.
        positive_weights: one factor per label, which the loss gets as `pos_weight`.

    Raises:
        ConfigError: the target refuses its arguments, or has parameters, which no optimizer would train.
    """
    arguments = cfg.arguments()
    weights = {"weight": class_weights, "pos_weight": positive_weights}
    supplied: dict[str, Any] = {name: torch.tensor(each) for name, each in weights.items() if each is not None}
    target = str(cfg._target_)
    if class_counts is not None and "class_counts" not in arguments and accepts(target, "class_counts"):
        supplied["class_counts"] = class_counts()
    if accepts(target, "input") and accepts(target, "target"):  # as in torch.nn.functional
        bound = bind("loss", arguments)
        return lambda logits, targets: bound(logits, targets, **supplied)
    loss: Loss = build("loss", arguments, **supplied)
    if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
        raise ConfigError(f"loss._target_={target}: has parameters, which the optimizer does not train.")
    return loss


def require_label_loss(loss: Loss, target: str, classes: int) -> None:
    """Refuse a loss that cannot be computed from several labels per image, by two images with one label and none.

    Raises:
        ConfigError: it raises an error, or does not give one number.
    """
    targets = torch.eye(classes)[:2]
    targets[1] = 0
    try:
        as_scalar(loss(torch.zeros(2, classes), targets), target)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"loss._target_={target}: cannot be computed for images with several labels ({reason}): logits and "
            "targets, zeros and ones, are [B, C].\nUse loss=cross_entropy or loss=focal."
        ) from error


def as_scalar(loss: Tensor, target: str) -> Tensor:
    """`loss`, if it is one number.

    Raises:
        ConfigError: it is not, as with reduction=none.
    """
    if loss.ndim:
        raise ConfigError(
            f"loss._target_={target}: gives a tensor of shape {tuple(loss.shape)}, and one number is needed.\n"
            "Where the loss has it, set loss.reduction=mean."
        )
    return loss
