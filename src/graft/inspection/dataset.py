"""The inspection of a data set: its images, duplicates, and the effect of resizing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from graft.data.preprocessing import Preprocessing
from graft.errors import UnreadableImage
from graft.inspection.duplicates import NEAR, SMALLEST, near_groups, same_groups
from graft.inspection.examine import Collection, Described, ImageFacts, examine

Floats = npt.NDArray[np.float64]
Groups = list[list[int]]


@dataclass(frozen=True)
class Inspection:
    """The results of inspecting all images, from which findings and tables are made; images are referred to by index.

    Attributes:
        collection: the images and their splits.
        preprocessing: resizing and cropping in evaluation.
        images: the description of each image, or the error that makes it unreadable.
        same: groups of images with identical pixels.
        near: groups of near duplicates, with identical copies of each.
    """

    collection: Collection
    preprocessing: Preprocessing
    images: list[Described]
    same: Groups
    near: Groups

    @classmethod
    def of(
        cls,
        collection: Collection,
        preprocessing: Preprocessing,
        *,
        near: int = NEAR,
        done: Callable[[], object] = lambda: None,
    ) -> "Inspection":
        """Inspect every image.

        Args:
            collection: the images and their splits.
            preprocessing: resizing and cropping in evaluation.
            near: number of bits of 128 in which the hashes of near duplicates may differ.
            done: called after each image, for a progress bar.
        """
        images = examine(collection.images, done)
        same = same_groups([each.digest if isinstance(each, ImageFacts) else None for each in images])
        return cls(collection, preprocessing, images, same, near_duplicates(images, same, near))

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def readable(self) -> dict[int, ImageFacts]:
        """Index -> description of the readable images."""
        return {index: each for index, each in enumerate(self.images) if isinstance(each, ImageFacts)}

    @cached_property
    def unreadable(self) -> dict[int, UnreadableImage]:
        """Index -> error of the unreadable images."""
        return {index: each for index, each in enumerate(self.images) if not isinstance(each, ImageFacts)}

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of images per class and split, [classes, splits]."""
        return self._count(np.ones(len(self), dtype=bool))

    @cached_property
    def readable_counts(self) -> npt.NDArray[np.int64]:
        """Number of readable images per class and split, [classes, splits]."""
        mask = np.zeros(len(self), dtype=bool)
        mask[list(self.readable)] = True
        return self._count(mask)

    def _count(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        counts = np.zeros((len(self.collection.classes), len(self.collection.parts)), dtype=np.int64)
        np.add.at(counts, (self.collection.images.labels[mask], self.collection.part[mask]), 1)
        return counts

    @cached_property
    def sizes(self) -> Floats:
        """(width, height) of each readable image, in the order of `readable`, in pixels, [M, 2]."""
        return np.array([facts.size for facts in self.readable.values()], dtype=np.float64).reshape(-1, 2)

    @cached_property
    def scale(self) -> Floats:
        """Scale factor of resizing for each readable image, [M]; above 1 it is enlarged without gaining detail."""
        return scales(self.sizes, self.preprocessing)

    @cached_property
    def cropped_share(self) -> Floats:
        """Fraction of the area of each readable image that the centre crop cuts off, in [0, 1], [M]."""
        return 1 - visible(self.sizes, self.preprocessing).prod(axis=1)

    @cached_property
    def aspect(self) -> Floats:
        """Width / height of each readable image, [M]."""
        return self.sizes[:, 0] / self.sizes[:, 1]

    def name(self, index: int) -> str:
        """Name of an image."""
        return self.collection.images.names[index]

    def parts_of(self, group: list[int]) -> set[str]:
        """Names of the splits of these images."""
        return {self.collection.parts[part] for part in np.unique(self.collection.part[group]).tolist()}

    def classes_of(self, group: list[int]) -> set[str]:
        """Names of the classes of these images."""
        return {self.collection.classes[label] for label in np.unique(self.collection.images.labels[group]).tolist()}


def visible(sizes: Floats, preprocessing: Preprocessing) -> Floats:
    """Fractions of the width and the height of images that remain after cropping, in [0, 1], [N, 2].

    Args:
        sizes: (width, height) in pixels, [N, 2].
        preprocessing: fit="crop" keeps the middle, "squash" everything.
    """
    if preprocessing.fit != "crop":
        return np.ones_like(sizes)
    return np.minimum(preprocessing.size[::-1] / (sizes * scales(sizes, preprocessing)[:, None]), 1)


def scales(sizes: Floats, preprocessing: Preprocessing) -> Floats:
    """Scale factors by which images are resized, the larger one of both sides, [N]; `sizes` as in `visible`."""
    target = preprocessing.box if preprocessing.fit == "crop" else preprocessing.size
    factors: Floats = (np.array(target[::-1]) / sizes).max(axis=1, initial=0)
    return factors


def near_duplicates(images: Sequence[Described | None], same: Groups, most: int = NEAR) -> Groups:
    """Groups of near duplicates with their identical copies, without very small images and those of a single colour."""
    copies = {group[0]: group for group in same}
    others = {index for group in same for index in group[1:]}
    chosen = [
        index
        for index, each in enumerate(images)
        if isinstance(each, ImageFacts) and not each.blank and min(each.size) >= SMALLEST and index not in others
    ]
    facts: list[ImageFacts] = [images[index] for index in chosen]  # type: ignore[misc]
    groups = near_groups([each.hash for each in facts], [each.thumb for each in facts], most)
    with_copies = [
        [index for position in group for index in copies.get(chosen[position], [chosen[position]])] for group in groups
    ]
    return [sorted(group) for group in with_copies]
