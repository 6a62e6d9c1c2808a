"""A network's predictions for labelled images, with the images: accuracy, figures and grids for a notebook."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from graft.data.augment import Augment
from graft.data.images import ImageSet
from graft.data.labels import text_of
from graft.data.preprocessing import Preprocessing
from graft.learning.predictions import AnyPredictions, Array, LabelPredictions, digest
from graft.review import figures, grids
from graft.review.label_figures import scores_per_label


@dataclass(frozen=True)
class EvaluatedImages:
    """Predictions of labelled images, with methods that draw PIL images for a notebook.

    Attributes:
        predictions: of every image of the part.
        part: "train", "val" or "test".
        classes: their names, by index.
        names: of all images of the part, by index.
        picture: index of an image -> uint8 [H, W, 3], preprocessed except for the normalisation.
    """

    predictions: AnyPredictions
    part: str
    classes: tuple[str, ...]
    names: Sequence[str]
    picture: Callable[[int], Array]

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, in [0, 1]; of several labels per image all must be correct."""
        return float(self.predictions.correct.mean()) if len(self.predictions) else float("nan")

    def per_class(self) -> dict[str, tuple[int, int]]:
        """Class name -> (number of correct predictions, number of images)."""
        if isinstance(self.predictions, LabelPredictions):
            scored = self.predictions.scored
            return dict(zip(self.classes, zip(scored.correct, scored.images, strict=True), strict=True))
        correct, totals = (counts.tolist() for counts in self.predictions.per_class(len(self.classes)))
        return dict(zip(self.classes, zip(correct, totals, strict=True), strict=True))

    def grid(self, count: int = 20, *, columns: int = 5) -> Image.Image:
        """Some images, titled `predicted (true)` in green or red; the same images for every network."""
        positions = self.predictions.sample(count, self.names)
        return self._grid(positions, f"{len(positions)} of the {self.part} images", columns)

    def worst(self, count: int = 15, *, columns: int = 5) -> Image.Image:
        """The wrongly predicted images whose true class was least probable."""
        positions = self.predictions.worst(count)
        return self._grid(positions, "Most wrong" if len(positions) else "No mistakes", columns)

    def confusion(self) -> Image.Image | None:
        """The confusion matrix; None for more than 2,000 classes, and for several labels per image."""
        if isinstance(self.predictions, LabelPredictions):
            return None
        return figures.confusion(self.predictions, self.classes, self._caption())

    def accuracies(self) -> Image.Image:
        """The accuracy of each class; the F1 and average precision of each label."""
        if isinstance(self.predictions, LabelPredictions):
            return scores_per_label(self.predictions, self.classes, self._caption())
        return figures.accuracy_per_class(self.predictions, self.classes, self._caption())

    def calibration(self) -> Image.Image | None:
        """Accuracy against confidence; None for several labels per image."""
        if isinstance(self.predictions, LabelPredictions):
            return None
        return figures.calibration(self.predictions, self.classes, self._caption())

    def _grid(self, positions: Array, heading: str, columns: int) -> Image.Image:
        images = [self.picture(int(self.predictions.indices[position])) for position in positions]
        tiles = grids.verdicts(self.predictions, positions, images, self.classes)
        return grids.grid(tiles, f"{heading}\n{self._caption()}", columns=columns)

    def _caption(self) -> str:
        return f"{len(self.predictions):,} {self.part} images · {self.predictions.headline}"


def labelled(
    images: ImageSet, classes: Sequence[str], preprocessing: Preprocessing, part: str, count: int, columns: int
) -> Image.Image:
    """Some of `images` titled by their classes, chosen by the digests of their names: always the same ones."""
    from graft.data.transforms import eval_transform

    transform = eval_transform(preprocessing)
    digests = np.array([digest(name) for name in images.names], dtype=np.uint64)
    tiles = [
        grids.Tile(
            transform(images.load(index)).permute(1, 2, 0).numpy(),
            (grids.shortened(text_of(images.labels[index], classes), grids.LETTERS),),
        )
        for index in np.argsort(digests, kind="stable")[:count].tolist()
    ]
    return grids.grid(tiles, f"{len(tiles)} of the {len(images):,} {part} images", columns=columns)


def augmented(
    images: ImageSet,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    augment: Augment,
    seed: int,
    count: int = 30,
    columns: int = 5,
) -> Image.Image:
    """Some training images as training sees them: in each row one image, in each column one epoch.

    Args:
        images: of the training split.
        classes: their names.
        preprocessing: of the network.
        augment: augmentation of single images; MixUp and CutMix are not shown.
        seed: of the run.
        count: number of tiles, at least one row.
        columns: number of epochs.
    """
    from graft.data.augmenter import Augmenter

    augmenter = Augmenter(augment, seed, preprocessing)
    digests = np.array([digest(name) for name in images.names], dtype=np.uint64)
    shown = np.argsort(digests, kind="stable")[: max(1, count // columns)].tolist()
    tiles = [
        grids.Tile(
            augmenter.picture(images.load(index), epoch, index).permute(1, 2, 0).numpy(),
            (grids.shortened(text_of(images.labels[index], classes), grids.LETTERS), f"epoch {epoch + 1}"),
        )
        for index in shown
        for epoch in range(columns)
    ]
    return grids.grid(tiles, f"What training sees\n{len(shown)} of the {len(images):,} images", columns=columns)
