"""An ensemble: the mean of the class probabilities of several networks."""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, listed
from graft.learning.inference import Inference

MOST_NAMES = 5
"""Largest number of classes that an error names."""


class Ensemble:
    """Networks with the same classes, whose probabilities are averaged; of a single network, its own logits.

    Each network has its own preprocessing, views and precision.

    Args:
        members: the networks; the classes of the first give the order.

    Attributes:
        classes: names of the C classes.
        decisions: of the networks' task.
        thresholds: with several labels per image, the mean of the networks' thresholds of each; else None.
        device: of the logits.
        preparations: the distinct preprocessings of the images; a call takes a batch of each.

    Raises:
        ConfigError: the networks do not have the same classes or the same task; names those that differ.
    """

    def __init__(self, members: Sequence[Inference]) -> None:
        first = members[0]
        self.members = list(members)
        self.classes, self.device, self.decisions = first.classes, first.device, first.decisions
        for each in members:
            ours, theirs = first.preparation.image_format, each.preparation.image_format
            if ours != theirs:
                raise ConfigError(
                    f"checkpoint: {each.source} reads images of {theirs}, and {first.source} of {ours}.\n"
                    "An ensemble needs one format."
                )
            if each.decisions is not first.decisions:
                raise ConfigError(
                    f"checkpoint: {each.source} is a {each.decisions.task.name} network, and {first.source} a "
                    f"{first.decisions.task.name} one.\nAn ensemble needs one kind."
                )
        self.preparations: list[Preprocessing] = list(dict.fromkeys(each.preparation for each in members))
        self._batch_of = [self.preparations.index(each.preparation) for each in members]
        self._orders = [_order(each, first) for each in members]
        self.thresholds = self._mean_thresholds()

    @property
    def members_thresholds(self) -> list[tuple[float, ...] | None]:
        """The thresholds of each network, in the order of `classes`; None with one class per image."""
        return [
            own if own is None or order is None else tuple(own[index] for index in order.tolist())
            for own, order in zip((member.thresholds for member in self.members), self._orders, strict=True)
        ]

    def _mean_thresholds(self) -> tuple[float, ...] | None:
        rows = [own for own in self.members_thresholds if own is not None]
        if len(rows) < 2:
            return rows[0] if rows else None
        return tuple(sum(column) / len(column) for column in zip(*rows, strict=True))

    def many(self) -> contextlib.AbstractContextManager[None]:
        """A context for a loop of calls, see `Inference.many`."""
        return self.members[0].many()

    def member_logits(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """Logits float32 [B, C] of each network, in the order of `classes`, on `device`.

        Args:
            batches: the same images, levels [B, C, H, W], in each of the `preparations`.
        """
        logits = []
        for member, batch, order in zip(self.members, self._batch_of, self._orders, strict=True):
            own = member(batches[batch]).to(self.device)
            logits.append(own if order is None else own[:, order.to(own.device)])
        return logits

    def __call__(self, batches: Sequence[Tensor]) -> Tensor:
        """Logits float32 [B, C] of the ensemble, see `member_logits` and `Decisions.logits_of_mean`."""
        return self.decisions.logits_of_mean(self.member_logits(batches))


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
