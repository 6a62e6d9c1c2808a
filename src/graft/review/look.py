"""A look at what a network says of labelled images: how much is right, what is mistaken for what, and the pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.learning.predictions import Array, Predictions, digest
from graft.review import figures, grids


@dataclass(frozen=True)
class Look:
    """Predictions with the images they are of. What it draws is a PIL image, which a notebook shows by itself.

    Attributes:
        predictions: of every image of the part.
        part: "train", "val" or "test".
        classes: their names, by index.
        names: of all images of the part, by index.
        picture: index of an image to uint8 [S, S, 3], as the network sees it before normalisation.
    """

    predictions: Predictions
    part: str
    classes: tuple[str, ...]
    names: Sequence[str]
    picture: Callable[[int], Array]

    @property
    def accuracy(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return self.predictions.accuracy

    def per_class(self) -> dict[str, tuple[int, int]]:
        """Class name to (right, images)."""
        right, totals = (counts.tolist() for counts in self.predictions.per_class(len(self.classes)))
        return dict(zip(self.classes, zip(right, totals, strict=True), strict=True))

    def grid(self, count: int = 20, *, columns: int = 5) -> Image.Image:
        """`predicted (true)` above some images, green if right and red if wrong; the same images for every network."""
        positions = self.predictions.sample(count, self.names)
        return self._grid(positions, f"{len(positions)} of the {self.part} images", columns)

    def worst(self, count: int = 15, *, columns: int = 5) -> Image.Image:
        """The images whose true class was least probable, of those that are wrong."""
        positions = self.predictions.worst(count)
        return self._grid(positions, "Most wrong" if len(positions) else "No mistakes", columns)

    def confusion(self) -> Image.Image:
        """What is called what."""
        matrix = self.predictions.confusion(len(self.classes))
        return figures.confusion_picture(matrix, self.classes, f"Confusion matrix\n{self._said()}")

    def accuracies(self) -> Image.Image:
        """A bar for each class."""
        right, totals = self.predictions.per_class(len(self.classes))
        return figures.accuracy_picture(right, totals, self.classes, f"Accuracy per class\n{self._said()}")

    def calibration(self) -> Image.Image:
        """Whether it is as often right as it is sure."""
        return figures.calibration_picture(self.predictions.calibration(), f"Calibration\n{self._said()}")

    def _grid(self, positions: Array, heading: str, columns: int) -> Image.Image:
        images = [self.picture(int(self.predictions.indices[position])) for position in positions]
        tiles = grids.verdicts(self.predictions, positions, images, self.classes)
        return grids.grid(tiles, f"{heading}\n{self._said()}", columns=columns)

    def _said(self) -> str:
        return f"{len(self.predictions):,} {self.part} images · accuracy {self.accuracy:.3f}"


def labelled(
    images: ImageSet, classes: Sequence[str], preprocessing: Preprocessing, part: str, count: int, columns: int
) -> Image.Image:
    """Some of `images` with their classes, chosen by their names' digests: the same ones each time."""
    from graft.data.transforms import eval_transform

    transform = eval_transform(preprocessing)
    digests = np.array([digest(name) for name in images.names], dtype=np.uint64)
    tiles = [
        grids.Tile(
            transform(images.load(index)).permute(1, 2, 0).numpy(),
            (grids.shortened(classes[int(images.labels[index])], grids.LETTERS),),
        )
        for index in np.argsort(digests, kind="stable")[:count].tolist()
    ]
    return grids.grid(tiles, f"{len(tiles)} of the {len(images):,} {part} images", columns=columns)
