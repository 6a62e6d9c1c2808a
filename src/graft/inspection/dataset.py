"""A data set inspected: what was seen of its pictures, which come twice, and what the resize does to them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from graft.data.layout import unused_files
from graft.data.preprocessing import Preprocessing
from graft.errors import UnreadableImage
from graft.inspection.duplicates import NEAR, SMALLEST, near_groups, same_groups
from graft.inspection.examine import Collection, Look, Seen, examine

Floats = npt.NDArray[np.float64]
Groups = list[list[int]]


@dataclass(frozen=True)
class Inspection:
    """Everything that was seen; findings and tables are made of it. Pictures are named by their index.

    Attributes:
        collection: the pictures and how they are divided.
        preprocessing: what evaluation would do to them.
        seen: of each picture what it looks like, or why it cannot be read.
        same: pictures with the same pixels, two or more at a time.
        near: near duplicates, two or more at a time, with the copies of each.
        unused: (name, reason) of the files in the folder that are not in the data set.
    """

    collection: Collection
    preprocessing: Preprocessing
    seen: list[Seen]
    same: Groups
    near: Groups
    unused: list[tuple[str, str]]

    @classmethod
    def of(
        cls,
        collection: Collection,
        preprocessing: Preprocessing,
        *,
        near: int = NEAR,
        done: Callable[[], object] = lambda: None,
    ) -> "Inspection":
        """Look at every picture.

        Args:
            collection: the pictures.
            preprocessing: what evaluation would do to them.
            near: bits of 128 in which near duplicates may differ.
            done: called after each picture, for a progress bar.
        """
        seen = examine(collection.images, done)
        same = same_groups([one.digest if isinstance(one, Look) else None for one in seen])
        paths = collection.images.paths
        unused = unused_files(collection.root, paths) if collection.root is not None and paths else []
        return cls(collection, preprocessing, seen, same, _near(seen, same, near), unused)

    def __len__(self) -> int:
        return len(self.seen)

    @cached_property
    def looks(self) -> dict[int, Look]:
        """The pictures that can be read, by index."""
        return {index: one for index, one in enumerate(self.seen) if isinstance(one, Look)}

    @cached_property
    def faults(self) -> dict[int, UnreadableImage]:
        """The others."""
        return {index: one for index, one in enumerate(self.seen) if not isinstance(one, Look)}

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Images per class and part, [classes, parts]."""
        return self._counted(np.ones(len(self), dtype=bool))

    @cached_property
    def readable_counts(self) -> npt.NDArray[np.int64]:
        """Those of them that can be read, [classes, parts]."""
        mask = np.zeros(len(self), dtype=bool)
        mask[list(self.looks)] = True
        return self._counted(mask)

    def _counted(self, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        counts = np.zeros((len(self.collection.classes), len(self.collection.parts)), dtype=np.int64)
        np.add.at(counts, (self.collection.images.labels[mask], self.collection.part[mask]), 1)
        return counts

    @cached_property
    def sizes(self) -> Floats:
        """(width, height) of each readable picture, in the order of `looks`, [M, 2]."""
        return np.array([look.size for look in self.looks.values()], dtype=np.float64).reshape(-1, 2)

    @property
    def target(self) -> int:
        """The short side after the resize, in pixels."""
        return self.preprocessing.resize_size if self.preprocessing.fit == "crop" else self.preprocessing.input_size

    @cached_property
    def scale(self) -> Floats:
        """How many times as long the resize makes the short side of each readable picture: above 1 it is enlarged and
        gains no detail, [M]."""
        return self.target / self.sizes.min(axis=1, initial=np.inf)

    @cached_property
    def cropped_share(self) -> Floats:
        """Share of the area of each readable picture that the centre crop cuts off, 0 to 1, [M]."""
        return 1 - visible(self.sizes, self.preprocessing).prod(axis=1)

    @cached_property
    def aspect(self) -> Floats:
        """Width / height of each readable picture, [M]."""
        return self.sizes[:, 0] / self.sizes[:, 1]

    def name(self, index: int) -> str:
        """What the picture is called."""
        return self.collection.images.names[index]

    def parts_of(self, group: list[int]) -> set[str]:
        """The parts that pictures belong to."""
        return {self.collection.parts[part] for part in np.unique(self.collection.part[group]).tolist()}

    def classes_of(self, group: list[int]) -> set[str]:
        """The classes that pictures belong to."""
        return {self.collection.classes[label] for label in np.unique(self.collection.images.labels[group]).tolist()}


def visible(sizes: Floats, preprocessing: Preprocessing) -> Floats:
    """Share of the width and of the height of pictures that the network sees, [N, 2].

    Args:
        sizes: (width, height) in pixels, [N, 2].
        preprocessing: "crop" shows the middle, "squash" everything.
    """
    if preprocessing.fit != "crop":
        return np.ones_like(sizes)
    scale = preprocessing.resize_size / sizes.min(axis=1, initial=np.inf)
    return np.minimum(preprocessing.input_size / (sizes * scale[:, None]), 1)


def _near(seen: list[Seen], same: Groups, most: int) -> Groups:
    """Near duplicates, each with its copies; pictures of one colour and very small ones are left out."""
    copies = {group[0]: group for group in same}
    others = {index for group in same for index in group[1:]}
    chosen = [
        index
        for index, one in enumerate(seen)
        if isinstance(one, Look) and not one.blank and min(one.size) >= SMALLEST and index not in others
    ]
    looks: list[Look] = [seen[index] for index in chosen]  # type: ignore[misc]
    groups = near_groups([look.hash for look in looks], [look.thumb for look in looks], most)
    whole = [[index for place in group for index in copies.get(chosen[place], [chosen[place]])] for group in groups]
    return [sorted(group) for group in whole]
