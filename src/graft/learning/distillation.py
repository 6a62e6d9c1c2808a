"""Knowledge distillation: a network also learns the softened probabilities of trained networks, its teachers."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from graft.config.task import Task
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, listed
from graft.learning.decisions import decisions_of
from graft.learning.restore import Restored
from graft.models.normalise import is_channels_last

MOST_NAMES = 5
"""Largest number of classes that an error names."""


class Teacher:
    """One or several trained networks, in evaluation mode, that see the training images of the student.

    It is no module, so that the student's checkpoints and parameters do not contain it. Hinton et al. 2015, "Distilling
    the Knowledge in a Neural Network".

    Args:
        networks: the teachers, of which the mean of the probabilities is learned.
        task: of the student, and of the teachers.
        classes: of the student; those of the teachers may be in another order.
        preprocessing: of the student's images.
        temperature: that logits are divided by, of teachers and student.
        alpha: weight of the distillation, in [0, 1]; the other loss has 1 - alpha.

    Raises:
        ConfigError: a teacher has another task, other classes, or images of another format; names what differs.
    """

    def __init__(
        self,
        networks: Sequence[Restored],
        task: Task,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        temperature: float,
        alpha: float,
    ) -> None:
        self.networks, self.preprocessing = list(networks), preprocessing
        self.temperature, self.alpha = temperature, alpha
        self.decisions = decisions_of(task)
        self._orders = [_order(each, task, classes) for each in networks]
        for each in networks:
            if (theirs := each.preprocessing.image_format) != preprocessing.image_format:
                raise ConfigError(
                    f"loss.teacher: {each.source} was trained on images of {theirs}, and the data have "
                    f"{preprocessing.image_format}.\nA teacher needs the same format."
                )
            each.network.requires_grad_(False).eval()

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """The mean of the teachers' probabilities at the temperature, float32 [B, C], in the student's class order.

        Args:
            images: the student's input, normalised by its mean and std, [B, C, H, W].
        """
        means = torch.zeros(())
        for each, order in zip(self.networks, self._orders, strict=True):
            network = each.network.to(images.device)
            inputs = self._for(each.preprocessing, images)
            if is_channels_last(network):
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            logits: Tensor = network(inputs).float()
            if order is not None:
                logits = logits[:, order.to(logits.device)]
            means = means.to(logits) + self.decisions.probabilities(logits / self.temperature) / len(self.networks)
        return means

    def loss(self, logits: Tensor, probabilities: Tensor) -> Tensor:
        """The Kullback-Leibler divergence of the student from the teachers, times the square of the temperature.

        The square keeps its gradient of the same size for all temperatures.

        Args:
            logits: of the student, [B, C].
            probabilities: as from `probabilities`.
        """
        return self.decisions.divergence(logits.float() / self.temperature, probabilities) * self.temperature**2

    def _for(self, theirs: Preprocessing, images: Tensor) -> Tensor:
        """The images at the input size and with the normalisation of a teacher."""
        ours = self.preprocessing
        if (theirs.mean, theirs.std) != (ours.mean, ours.std):
            mean, std, new_mean, new_std = (
                images.new_tensor(each)[:, None, None] for each in (ours.mean, ours.std, theirs.mean, theirs.std)
            )
            images = (images * std + mean - new_mean) / new_std
        if images.shape[-2:] != theirs.size:
            images = F.interpolate(images, theirs.size, mode="bilinear", antialias=True)
        return images


def _order(teacher: Restored, task: Task, classes: Sequence[str]) -> Tensor | None:
    """Positions of the student's classes among the teacher's; None if they are in the same order."""
    if teacher.task is not task:
        raise ConfigError(
            f"loss.teacher: {teacher.source} is a {teacher.task.name} network, and the data are {task.name}.\n"
            "A teacher needs the same kind of labels."
        )
    if teacher.classes == tuple(classes):
        return None
    only = {"teacher": [name for name in teacher.classes if name not in classes],
            "data": [name for name in classes if name not in teacher.classes]}  # fmt: skip
    if any(only.values()):
        lines = "".join(f"\nonly in the {where}: {listed(names, MOST_NAMES)}" for where, names in only.items() if names)
        raise ConfigError(
            f"loss.teacher: {teacher.source} has other classes than the data.{lines}\n"
            "A teacher needs the same classes, in any order."
        )
    return torch.tensor([teacher.classes.index(name) for name in classes])
