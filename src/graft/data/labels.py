"""The labels of images as an array: a class index of each, or several labels as a row of zeros and ones.

The shape of the array is the only mark of the task: int64 [N] for one label per image, int8 [N, C] for several.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.config.task import MULTI_LABEL, SINGLE_LABEL, Task

PADDING = -1
"""Label and index of padding, which losses and metrics ignore; of several labels, each is PADDING."""

Labels = npt.NDArray[np.integer[Any]]
"""int64 [N], or int8 [N, C] of zeros and ones."""

NONE = "no label"
"""What the label of an image without any is called."""


def task_of(labels: Labels) -> Task:
    """The task that labels are for."""
    return MULTI_LABEL if labels.ndim == 2 else SINGLE_LABEL


def numbered(groups: Sequence[str] | npt.NDArray[Any]) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.int64]]:
    """(the names of the groups, ascending; the index among them of the group of each image, [N])."""
    names, numbers = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    return names, numbers


def multi_hot(rows: Sequence[Sequence[int]], num_classes: int) -> npt.NDArray[np.int8]:
    """Rows of class indices, each of any length, as int8 [N, C]."""
    labels = np.zeros((len(rows), num_classes), dtype=np.int8)
    for row, indices in enumerate(rows):
        labels[row, list(indices)] = 1
    return labels


def real(labels: Labels) -> npt.NDArray[np.bool_]:
    """Whether each image is none of padding, [N]."""
    mask: npt.NDArray[np.bool_] = (labels if labels.ndim == 1 else labels[:, 0]) != PADDING
    return mask


def padded(labels: Labels, padding: npt.NDArray[np.bool_]) -> Labels:
    """A copy of the labels with PADDING where `padding` [N] is true."""
    labels = labels.copy()
    labels[padding] = PADDING
    return labels


def counts_of(labels: Labels, num_classes: int) -> npt.NDArray[np.int64]:
    """Number of images of each class, [C]; images with several labels count in each of them."""
    if labels.ndim == 2:
        return labels.sum(axis=0, dtype=np.int64)
    return np.bincount(labels, minlength=num_classes)


def has_class(labels: Labels, number: int) -> npt.NDArray[np.bool_]:
    """Whether each image is of a class, or has a label, [N]."""
    mask: npt.NDArray[np.bool_] = labels == number if labels.ndim == 1 else labels[:, number] == 1
    return mask


def names_of(label: Any, classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the labels of an image, whose element or row in the array this is."""
    indices = [int(label)] if np.ndim(label) == 0 else np.flatnonzero(label).tolist()
    return tuple(classes[index] for index in indices)


def text_of(label: Any, classes: Sequence[str]) -> str:
    """The labels of an image on one line."""
    return ", ".join(names_of(label, classes)) or NONE


def strata_of(labels: Labels) -> npt.NDArray[np.int64]:
    """A single class of each image to stratify by, [N]: of several labels the rarest; C for an image without any."""
    if labels.ndim == 1:
        return labels.astype(np.int64)
    totals = labels.sum(axis=0, dtype=np.int64)
    sizes = np.where(labels == 1, totals, np.iinfo(np.int64).max)
    return np.where(labels.any(axis=1), sizes.argmin(axis=1), labels.shape[1])


def cells_of(labels: Labels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(image, class) of each label that an image has, in ascending order of the images."""
    if labels.ndim == 2:
        images, classes = np.nonzero(labels == 1)
        return images.astype(np.int64), classes.astype(np.int64)
    return np.arange(len(labels)), labels.astype(np.int64)
