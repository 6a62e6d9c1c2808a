"""An ensemble: the mean of the class probabilities of several networks."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, listed
from graft.learning.inference import Inference
from graft.learning.views import log_mean_exp

MOST_NAMES = 5
"""Largest number of classes that an error names."""


class Ensemble:
    """Networks with the same classes, whose probabilities are averaged; of a single network, its own logits.

    Each network has its own preprocessing, views and precision.

    Args:
        members: the networks; the classes of the first give the order.

    Attributes:
        classes: names of the C classes.
        device: of the logits.
        preparations: the distinct preprocessings of the images; a call takes a batch of each.

    Raises:
        ConfigError: the networks do not have the same classes; names those that differ.
    """

    def __init__(self, members: Sequence[Inference]) -> None:
        first = members[0]
        self.members = list(members)
        self.classes, self.device = first.classes, first.device
        self.preparations: list[Preprocessing] = list(dict.fromkeys(each.preparation for each in members))
        self._batch_of = [self.preparations.index(each.preparation) for each in members]
        self._orders = [_order(each, first) for each in members]

    def many(self) -> contextlib.AbstractContextManager[None]:
        """A context for a loop of calls, see `Inference.many`."""
        return self.members[0].many()

    def member_logits(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Logits float32 [B, C] of each network, in the order of `classes`, on `device`.

        Args:
            batches: the same images, uint8 [B, 3, H, W], in each of the `preparations`.
        """
        logits = []
        for member, batch, order in zip(self.members, self._batch_of, self._orders, strict=True):
            own = member(batches[batch]).to(self.device)
            logits.append(own if order is None else own[:, order.to(own.device)])
        return logits

    def __call__(self, batches: Sequence[Tensor]) -> Tensor:
        """Logits float32 [B, C] of the ensemble, see `member_logits` and `log_mean_of_probabilities`."""
        return log_mean_of_probabilities(self.member_logits(batches))


def log_mean_of_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the probabilities, whose softmax is that mean; of one network, its logits.

    Probabilities rather than logits are averaged, as Lakshminarayanan et al. 2017 do ("Deep Ensembles"): each network
    then weighs the same however large its logits are, and the loss is at most the mean of the networks' (Jensen).

    Args:
        logits: float32 [B, C] of each network.
    """
    if len(logits) == 1:
        return logits[0]
    return log_mean_exp([each.log_softmax(1) for each in logits])


def _order(member: Inference, first: Inference) -> Tensor | None:
    """Positions of the classes of `first` among those of `member`; None if they are in the same order."""
    if member.classes == first.classes:
        return None
    sets = set(member.classes), set(first.classes)
    only = [sorted(sets[0] - sets[1]), sorted(sets[1] - sets[0])]
    if any(only):
        lines = [
            f"only in {source}: {listed(names, MOST_NAMES)}"
            for source, names in zip((member.source, first.source), only, strict=True)
            if names
        ]
        raise ConfigError(
            f"checkpoint: {member.source} and {first.source} have different classes.\n"
            + "\n".join(lines)
            + "\nAn ensemble needs the same classes in all networks, in any order."
        )
    return torch.tensor([member.classes.index(name) for name in first.classes])
