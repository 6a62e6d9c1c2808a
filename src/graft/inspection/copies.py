"""Copies of images across splits: found as by `graft inspect`, reported, dropped from training, or kept together."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.contents import IDENTITY
from graft.data.images import ImageSet
from graft.data.sources.base import Source
from graft.data.splits import Splits
from graft.errors import DataError, listed
from graft.inspection.dataset import near_duplicates
from graft.inspection.duplicates import same_groups
from graft.inspection.examine import Described, ImageFacts, examine
from graft.inspection.quality import COUNT, Quality
from graft.system.files import write_atomically

LISTED = 3
"""Pairs of images that a note names."""

DESCRIPTION = np.dtype(
    [
        *(("image", IDENTITY), ("readable", "?"), ("blank", "?"), ("size", "<u4", 2)),
        *(("digest", "V32"), ("hash", "V16"), ("thumb", "V256"), ("quality", "<f4", COUNT)),
    ]
)
"""What is remembered of an image to recognise its copies and to judge how it is taken."""

Groups = list[list[int]]
Done = Callable[[], object]


@dataclass(frozen=True)
class Copies:
    """Images of which some are copies of others.

    Attributes:
        names: of all images.
        split: of each image.
        groups: indices of images that are copies of one another.
        near: whether near duplicates are among them.
    """

    names: list[str]
    split: list[str]
    groups: Groups
    near: bool

    def __str__(self) -> str:
        return "copies" if self.near else "identical copies"

    def of_training_images(self) -> dict[int, int]:
        """Training image -> its first copy in another split, for those that have one, ascending."""
        found = {}
        for group in self.groups:
            others = [index for index in group if self.split[index] != "train"]
            found.update({index: others[0] for index in group if self.split[index] == "train" and others})
        return dict(sorted(found.items()))

    def listed(self, copy_of: Mapping[int, int]) -> str:
        """The first pairs as text."""
        pairs = [f"{self.names[index]} = {self.names[other]}" for index, other in copy_of.items()]
        return listed(pairs, LISTED, counted=False)


def find_copies(
    parts: Mapping[str, ImageSet], memory: Path | None, *, decode: bool, done: Done = lambda: None
) -> Copies:
    """Find copies by the measure of `graft inspect`.

    Args:
        parts: split -> images, each image once.
        memory: file in which descriptions of decoded images are kept, if it can be written; None: they are not.
        decode: decode images of which there is no description; otherwise, if there are any, only files of identical
            content are found, which needs no decoding.
        done: called after each image that is decoded.
    """
    names = [name for images in parts.values() for name in images.names]
    split = [part for part, images in parts.items() for _ in range(len(images))]
    known = _read(memory)
    if not decode and not len(known):
        return Copies(names, split, _identical_files(parts), near=False)
    identities = [images.identities() for images in parts.values()]
    every = np.concatenate(identities)
    if not decode and not np.isin(every, known["image"]).all():
        return Copies(names, split, same_groups([identity or None for identity in every.tolist()]), near=False)
    facts = [each for images in parts.values() for each in described(images, memory, done)]
    return Copies(names, split, copies_among(facts), near=True)


def copies_among(facts: Sequence[ImageFacts | None]) -> Groups:
    """Groups of images that are copies of one another, identical or near; None is an unreadable image."""
    same = same_groups([None if each is None else each.digest for each in facts])
    near = near_duplicates(facts, same)
    covered = {index for group in near for index in group}
    return near + [group for group in same if covered.isdisjoint(group)]


def described(images: ImageSet, memory: Path | None, done: Done = lambda: None) -> list[ImageFacts | None]:
    """The description of each image, None for an unreadable one; those in `memory` are not decoded again.

    The format and the pixel format of the file are not remembered, and empty.

    Args:
        images: the images.
        memory: file of the descriptions, if it can be written.
        done: called after each image that is decoded.
    """
    own, known = images.identities(), _read(memory)
    new = np.flatnonzero(~np.isin(own, known["image"]))
    if len(new):
        known = np.concatenate([known, _described(own[new], examine(images.select(new), done))])
        _write(memory, known)
    _, first = np.unique(known["image"], return_index=True)
    return [_facts(row) for row in known[first][np.searchsorted(known["image"][first], own)]]


def _identical_files(parts: Mapping[str, ImageSet]) -> Groups:
    """Groups of images of identical content; only files that have the same samples are read completely."""
    samples = np.concatenate([images.samples() for images in parts.values()])
    _, inverse, counts = np.unique(samples, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[inverse.reshape(-1)] > 1)
    identities: list[bytes | None] = [None] * len(samples)
    start = 0
    for images in parts.values():
        own = candidates[(candidates >= start) & (candidates < start + len(images))]
        for index, identity in zip(own.tolist(), images.select(own - start).identities().tolist(), strict=True):
            identities[index] = identity or None
        start += len(images)
    return same_groups(identities)


def with_groups_of_copies(source: Source, memory: Path | None, done: Done = lambda: None) -> Source:
    """The source with copies of one image in one group, which splits do not divide (data.duplicates=group).

    Groups that the source has itself are merged where their images are copies.

    Raises:
        DataError: the published splits have copies of one image in training and in validation or test.
    """
    copies = find_copies(source.named_parts(), memory, decode=True, done=done)
    names, split = copies.names, copies.split
    divided = [group for group in copies.groups if len({split[index] for index in group}) > 1]
    if divided:
        one = divided[0][0]
        other = next(index for index in divided[0] if split[index] != split[one])
        raise DataError(
            f"data.duplicates=group: {len(divided):,} groups of copies are divided, because the data set is published "
            f"in splits: {names[one]} in {split[one]} and {names[other]} in {split[other]}.\n"
            "Use data.duplicates=drop, which removes such images from training."
        )
    own = source.group_of or (lambda name: name)
    leader: dict[str, str] = {}

    def find(group: str) -> str:
        while group in leader:
            group = leader[group]
        return group

    for group in copies.groups:
        roots = sorted({find(own(names[index])) for index in group})
        leader.update(dict.fromkeys(roots[1:], roots[0]))
    return replace(
        source,
        group_of=lambda name: find(own(name)),
        notes=(
            *source.notes,
            f"copies of an image are in one split (data.duplicates=group): {len(copies.groups):,} groups",
        ),
    )


def without_copies(splits: Splits, memory: Path | None, done: Done = lambda: None) -> Splits:
    """Splits whose training images have no copy among the validation and test images (data.duplicates=drop).

    Raises:
        DataError: a class would have no training images.
    """
    copies = find_copies(splits.distinct_parts(), memory, decode=True, done=done)
    copy_of = copies.of_training_images()
    if not copy_of:
        return splits
    names, split = copies.names, copies.split
    dropped = tuple((names[index], f"copy of {names[other]} ({split[other]})") for index, other in copy_of.items())
    kept = np.delete(np.arange(len(splits.train)), list(copy_of))
    train = splits.train.select(kept)
    counts = (images.counts(len(splits.classes)) for images in (splits.train, train))
    empty = [name for name, before, after in zip(splits.classes, *counts, strict=True) if before and not after]
    if empty:
        raise DataError(
            f'data.duplicates=drop: all training images of class "{empty[0]}" are copies of validation or test '
            "images.\nAdd images, or set data.duplicates=keep."
        )
    count = _count(len(dropped), "training image")
    note = f"{count} dropped, copies of validation or test images (data.duplicates=drop): {copies.listed(copy_of)}"
    return replace(splits, train=train, notes=(*splits.notes, note), dropped=(*splits.dropped, *dropped))


def with_note_on_copies(splits: Splits, memory: Path | None) -> Splits:
    """Splits with a note on training images that have a copy among the validation and test images.

    Identical files are always recognised; near duplicates if `graft inspect` or an earlier run has decoded the images.
    """
    copies = find_copies(splits.distinct_parts(), memory, decode=False)
    copy_of = copies.of_training_images()
    if not copy_of:
        return splits
    note = (
        f"{_count(len(copy_of), 'training image')} with {copies} in validation or test, whose figures are too good: "
        f"{copies.listed(copy_of)}; data.duplicates=drop removes them from training, and graft inspect lists all"
    )
    return replace(splits, notes=(*splits.notes, note))


def remember(images: ImageSet, described: Sequence[Described], memory: Path | None) -> None:
    """Keep descriptions of decoded images for later runs."""
    identities, known = images.identities(), _read(memory)
    new = np.flatnonzero(~np.isin(identities, known["image"]))
    if len(new):
        _write(
            memory, np.concatenate([known, _described(identities[new], [described[index] for index in new.tolist()])])
        )


def _described(identities: npt.NDArray[np.bytes_], described: Sequence[Described]) -> npt.NDArray[np.void]:
    rows = np.zeros(len(identities), DESCRIPTION)
    rows["image"] = identities
    for row, each in zip(rows, described, strict=True):
        if isinstance(each, ImageFacts):
            row["readable"], row["blank"], row["size"] = True, each.blank, each.size
            row["digest"], row["hash"], row["thumb"] = each.digest, each.hash, each.thumb
            row["quality"] = each.quality.values()
    return rows


def _facts(row: np.void) -> ImageFacts | None:
    if not row["readable"]:
        return None
    width, height = row["size"].tolist()
    digest, hash_, thumb = (row[name].tobytes() for name in ("digest", "hash", "thumb"))
    quality = Quality(*row["quality"].tolist())
    return ImageFacts((width, height), "", "", False, False, bool(row["blank"]), digest, hash_, thumb, quality)


def _read(file: Path | None) -> npt.NDArray[np.void]:
    """The descriptions in a file; none if it does not exist or is damaged."""
    if file is None:
        return np.zeros(0, DESCRIPTION)
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.zeros(0, DESCRIPTION)
    return rows if rows.dtype == DESCRIPTION else np.zeros(0, DESCRIPTION)


def _write(file: Path | None, rows: npt.NDArray[np.void]) -> None:
    """Write the descriptions, if the file can be written; else they are made again by the next run."""
    if file is None:
        return
    content = io.BytesIO()
    np.save(content, rows)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
