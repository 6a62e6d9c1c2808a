"""Splitting a published data set into training, validation and test images."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from graft.config.task import MULTI_LABEL
from graft.data.images import ImageSet
from graft.data.label_splits import labelled_fold, labelled_fraction
from graft.data.labels import task_of
from graft.data.sources.base import Source
from graft.data.splits import Splits, few_shot, grouped_fraction, stratified_fold, stratified_fraction
from graft.errors import ConfigError, DataError, listed

LISTED = 20
"""Number of classes that a note names."""

VALIDATE_ON_TEST = "Add images, or set data.val_fraction=0 to validate on the test split."


def with_fold(source: Source, fold: int, folds: int, seed: int) -> Source:
    """The source with fold `fold` as its validation images; a set without published splits gets test images first.

    Args:
        source: as published.
        fold: from 0 to folds - 1.
        folds: number of folds, at least 2.
        seed: of the draw.

    Raises:
        DataError: a class has too few images, or there are fewer groups than folds.
    """
    train, test = source.train, source.test
    _require_images(source.classes, train)
    if source.test_fraction is not None:
        train, test = _draw_test(source)
    if source.val is not None:
        train = train.join(source.val)
    rest, drawn = _draw_fold(source, train, fold, folds, seed)
    note = f"validation is fold {fold} of {folds} (data.fold, data.folds)"
    return replace(
        source,
        train=train.select(rest),
        val=train.select(drawn),
        test=test,
        test_fraction=None,
        notes=(*source.notes, note),
    )


def _draw_fold(source: Source, pool: ImageSet, fold: int, folds: int, seed: int) -> tuple[list[int], list[int]]:
    """(rest, drawn): indices into `pool`, stratified by class; the source's groups are not divided."""
    if task_of(pool.labels) is MULTI_LABEL:
        return labelled_fold(pool.labels, fold, folds, seed, _groups(source, pool))
    if source.group_of is None:
        return stratified_fold(pool.labels, fold, folds, seed, classes=source.classes)
    from sklearn.model_selection import StratifiedGroupKFold

    group_of = [source.group_of(name) for name in pool.names]
    count = len(set(group_of))
    if count < folds:
        raise DataError(
            f"data.folds={folds}: there are only {count} groups, and a group is not divided.\nGive fewer folds."
        )
    order = np.argsort(np.array(pool.names), kind="stable")  # so that the folds do not depend on the file system
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = splitter.split(order, pool.labels[order], np.array(group_of)[order])
        rest, drawn = next(itertools.islice(parts, fold, None))
    return sorted(order[rest].tolist()), sorted(order[drawn].tolist())


def _draw_test(source: Source) -> tuple[ImageSet, ImageSet]:
    """(rest, test images) of a set without published splits; the test images do not depend on the run's seed."""
    assert source.test_fraction is not None
    return _draw_fraction(
        source, source.train, source.test_fraction, source.split_seed, "data.test_fraction", "Add images."
    )


def _draw_fraction(
    source: Source, images: ImageSet, fraction: float, seed: int, key: str, way_out: str
) -> tuple[ImageSet, ImageSet]:
    """(rest, drawn) images: `fraction` of each class, or about that of whole groups."""
    groups = _groups(source, images)
    if task_of(images.labels) is MULTI_LABEL:
        rest, drawn = labelled_fraction(images.labels, fraction, seed, key=key, way_out=way_out, groups=groups)
    elif groups is None:
        rest, drawn = stratified_fraction(
            images.labels, fraction, seed, key=key, way_out=way_out, classes=source.classes
        )
    else:
        rest, drawn = grouped_fraction(images.labels, groups, fraction, seed, key=key, classes=source.classes)
    return images.select(rest), images.select(drawn)


def _groups(source: Source, images: ImageSet) -> list[str] | None:
    """The group of each image; None if the source has no groups."""
    return None if source.group_of is None else list(map(source.group_of, images.names))


def divide(source: Source, root: Path | None, seed: int, shots: int | None, val_fraction: float) -> Splits:
    """Draw the validation and test images that a source lacks and the shots, and note what is used twice.

    Args:
        source: as published, or from `with_fold`.
        root: folder of the data set; None for embedded ones.
        seed: of the draws of validation images and shots.
        shots: training images per class; None: all.
        val_fraction: fraction of the training images to validate on, in [0, 1); 0: validate on the test images.

    Raises:
        DataError: no images, a single class, or a class with too few images.
        ConfigError: shots of images with several labels.
    """
    classes, notes = source.classes, list(source.notes)
    train, val, test = source.train, source.val, source.test
    _require_images(classes, train)
    if shots is not None and task_of(train.labels) is MULTI_LABEL:
        raise ConfigError(
            f"data.shots={shots}: draws images of one class each, and these images have several labels.\n"
            "Leave data.shots out; trainer.limit_train_batches trains on a part of the images."
        )
    if source.test_fraction is not None and source.test_on_rest and shots is not None:
        kept, rest = few_shot(train.labels, shots, seed, classes=classes)
        rest = _without_groups_of(source, rest, kept)
        _require_test_images(train, kept, shots, classes)
        train, test, shots = train.select(kept), train.select(rest), None
        val = test
        notes.append(f"the {len(test)} images that are not trained on serve as validation and test images")
    elif source.test_fraction is not None:
        train, test = _draw_test(source)
    if val is None and (val_fraction > 0 or test is None):
        train, val = _draw_validation(source, train, val_fraction, seed)
    if val is None:
        val = test
        notes.append(f"the {len(val or ())} test images serve as validation images too (data.val_fraction=0)")
    if test is None:
        test = val
        notes.append(
            f"this data set has no test images: its {len(val or ())} validation images serve as test images too"
        )
    assert val is not None
    assert test is not None
    if shots is not None:
        kept, _ = few_shot(train.labels, shots, seed, classes=classes)
        train = train.select(kept)
    for part, images in (("validation", val), ("test", test)):
        if not len(images):
            raise DataError(f"no {part} images.")
    drawn = (("training", train),) if task_of(train.labels) is MULTI_LABEL else ()  # of few images, all may be drawn
    for part, images in (*drawn, ("validation", val), ("test", test)):
        absent = [name for name, count in zip(classes, images.counts(len(classes)), strict=True) if not count]
        if absent and not (part == "validation" and val is test):
            notes.append(f"no {part} images of {listed(absent, LISTED, counted=False)}")
    return Splits(classes=classes, train=train, val=val, test=test, notes=tuple(notes), root=root)


def _draw_validation(source: Source, train: ImageSet, val_fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    if val_fraction == 0:
        raise DataError(
            "data.val_fraction=0 leaves nothing to validate or test on: the data set has no such images.\n"
            "Set data.val_fraction=0.1, or provide a val or test folder."
        )
    return _draw_fraction(source, train, val_fraction, seed, "data.val_fraction", VALIDATE_ON_TEST)


def _without_groups_of(source: Source, indices: list[int], kept: list[int]) -> list[int]:
    """`indices` without the images whose group has one among `kept`."""
    if source.group_of is None:
        return indices
    names = source.train.names
    groups = {source.group_of(names[index]) for index in kept}
    return [index for index in indices if source.group_of(names[index]) not in groups]


def require_whole_groups(splits: Splits, group_of: Callable[[str], str]) -> str:
    """A note with the number of groups of each split.

    Raises:
        DataError: a group has images in two splits; names it.
    """
    split_of: dict[str, str] = {}
    counts = {}
    for name, part in splits.distinct_parts().items():
        groups = set(map(group_of, part.names))
        divided = sorted(group for group in groups if group in split_of)
        if divided:
            more = f" and {len(divided) - 1:,} more groups" if len(divided) > 1 else ""
            raise DataError(
                f"group {divided[0]}{more}: has images in {split_of[divided[0]]} as well as in {name}, as the data set "
                "is published.\nMove its images to one of them, or leave the groups out."
            )
        split_of |= dict.fromkeys(groups, name)
        counts[name] = len(groups)
    listed = ", ".join(f"{count:,} in {name}" for name, count in counts.items())
    return f"{len(split_of):,} groups, none in two splits: {listed}"


def _require_images(classes: Sequence[str], train: ImageSet) -> None:
    if not len(train):
        raise DataError("no training images.")
    if len(classes) < 2:
        raise DataError(
            f'there is only one class ("{classes[0]}"); at least two are needed.\n'
            "Add a folder of images of another class."
        )
    absent = [name for name, count in zip(classes, train.counts(len(classes)), strict=True) if not count]
    if absent:
        raise DataError(f'class "{absent[0]}" has no training images.\nAdd some, or remove the class everywhere.')


def _require_test_images(pool: ImageSet, kept: Sequence[int], shots: int, classes: Sequence[str]) -> None:
    remaining = np.bincount(np.delete(pool.labels, kept), minlength=len(classes))
    for label, count in enumerate(pool.counts(len(classes))):
        if count and not remaining[label]:
            raise DataError(
                f'class "{classes[label]}" has {count} images, and data.shots={shots} leaves none to test.\n'
                f"Set data.shots={count - 1} or fewer."
            )
