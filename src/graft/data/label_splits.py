"""Seeded draws from images with several labels: every label keeps its share in each part, as far as possible.

Iterative stratification: Sechidis, Tsoumakas & Vlahavas 2011, "On the Stratification of Multi-Label Data".
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graft.data.labels import Labels, numbered
from graft.data.splits import order_of
from graft.errors import DataError

Parts = npt.NDArray[np.int64]


def labelled_fraction(
    labels: Labels, fraction: float, seed: int, *, key: str, way_out: str, groups: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Draw about `fraction` of the images with each label, and of those without any.

    A label that few images have stays with the rest: a single image is never drawn.

    Args:
        labels: int8 [N, C] of zeros and ones.
        fraction: to draw, in (0, 1).
        seed: the only source of randomness.
        key: the configuration key of the fraction, for the error message.
        way_out: how to fix the error, for its message.
        groups: group of each image, length N, that is drawn whole; None: each image alone.

    Returns:
        (rest, drawn): sorted, disjoint indices that together cover the images.

    Raises:
        DataError: one of both would be empty.
    """
    part = stratified_parts(labels, (1 - fraction, fraction), seed, groups)
    rest, drawn = (np.flatnonzero(part == number).tolist() for number in range(2))
    if not rest or not drawn:
        count = len(labels) if groups is None else len(set(groups))
        what = "images" if groups is None else "groups"
        raise DataError(f"{key}={fraction:g}: {count} {what} are too few to draw from.\n{way_out}")
    return rest, drawn


def labelled_fold(
    labels: Labels, fold: int, folds: int, seed: int, groups: Sequence[str] | None = None
) -> tuple[list[int], list[int]]:
    """Draw fold `fold` of `folds`; with the same seed, each image is in exactly one of them.

    Args:
        labels: int8 [N, C] of zeros and ones.
        fold: from 0 to folds - 1.
        folds: at least 2.
        seed: the only source of randomness.
        groups: as in `labelled_fraction`.

    Returns:
        (rest, drawn): sorted, disjoint indices that together cover the images.

    Raises:
        DataError: there are fewer images or groups than folds.
    """
    part = stratified_parts(labels, (1 / folds,) * folds, seed, groups)
    rest, drawn = np.flatnonzero(part != fold).tolist(), np.flatnonzero(part == fold).tolist()
    if not rest or not drawn:
        count = f"{len(labels)} images" if groups is None else f"{len(set(groups))} groups, and a group is not divided"
        raise DataError(f"data.folds={folds}: there are only {count}.\nGive fewer folds.")
    return rest, drawn


def stratified_parts(labels: Labels, shares: Sequence[float], seed: int, groups: Sequence[str] | None = None) -> Parts:
    """The part of each image, [N], by iterative stratification.

    The images of the rarest label are dealt first, each to the part that lacks most of that label, then those of the
    rarest of the others. Images without a label are dealt like those of one label more.

    Args:
        labels: int8 [N, C] of zeros and ones.
        shares: of each part; their sum is 1.
        seed: the only source of randomness; the result does not depend on the machine.
        groups: group of each image, length N, that is dealt whole; None: each image alone.
    """
    counts = np.concatenate([labels, ~labels.any(axis=1, keepdims=True)], axis=1)
    sizes, item_of = np.ones(len(labels)), np.arange(len(labels))
    if groups is not None:
        names, item_of = numbered(groups)
        totals = np.zeros((len(names), counts.shape[1]), dtype=np.int64)
        np.add.at(totals, item_of, counts)
        counts, sizes = totals, np.bincount(item_of).astype(float)
    proportions = np.array(shares)
    lacking = proportions[:, None] * counts.sum(axis=0)
    room = proportions * sizes.sum()
    remaining = (counts > 0).sum(axis=0)
    order = order_of(len(counts), seed, counts.shape[1])
    members = [order[counts[order, label] > 0] for label in range(counts.shape[1])]
    part = np.full(len(counts), -1)
    while remaining.any():
        label = int(np.where(remaining > 0, remaining, np.iinfo(np.int64).max).argmin())
        for item in members[label].tolist():
            if part[item] >= 0:
                continue
            wanting = np.flatnonzero(lacking[:, label] >= lacking[:, label].max() - 1e-9)
            chosen = wanting[room[wanting].argmax()]
            part[item] = chosen
            lacking[chosen] -= counts[item]
            room[chosen] -= sizes[item]
            remaining -= counts[item] > 0
    return part[item_of]
