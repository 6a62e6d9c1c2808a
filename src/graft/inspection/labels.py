"""The labels of a data set with several per image: how many an image has, and which come together."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.data.labels import Labels

PAIRS = 10
"""Number of pairs of labels that the report for the terminal shows."""


@dataclass(frozen=True)
class LabelFacts:
    """Numbers of labels and images.

    Attributes:
        classes: names of the C labels.
        images: number of images.
        per_image: number of labels -> number of images with that many.
        together: number of images with both labels, [C, C]; of one label on the diagonal.
    """

    classes: tuple[str, ...]
    images: int
    per_image: dict[int, int]
    together: npt.NDArray[np.int64]

    @classmethod
    def of(cls, labels: Labels, classes: Sequence[str]) -> "LabelFacts":
        """The facts of labels [N, C] of zeros and ones."""
        numbers = Counter(labels.sum(axis=1, dtype=np.int64).tolist())
        counts = labels.astype(np.float64)  # exact up to 2**53, and BLAS multiplies no integers
        together = np.rint(counts.T @ counts).astype(np.int64)
        return cls(tuple(classes), len(labels), dict(sorted(numbers.items())), together)

    @property
    def cardinality(self) -> float:
        """Mean number of labels per image."""
        return sum(number * count for number, count in self.per_image.items()) / max(1, self.images)

    @property
    def density(self) -> float:
        """Share of all pairs of an image and a label that are yes."""
        return self.cardinality / len(self.classes)

    @property
    def unlabelled(self) -> int:
        """Number of images without any label."""
        return self.per_image.get(0, 0)

    def pairs(self) -> list[tuple[int, int, int, float]]:
        """(label, label, images with both, their share of the images with either), those with most images first."""
        found = []
        for first, second in itertools.combinations(range(len(self.classes)), 2):
            both = int(self.together[first, second])
            if both:
                either = int(self.together[first, first] + self.together[second, second]) - both
                found.append((first, second, both, both / either))
        return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))

    def lines(self) -> Iterator[str]:
        """Sentences for the report."""
        numbers = ", ".join(f"{count:,} with {number}" for number, count in self.per_image.items())
        yield (
            f"labels per image: {self.cardinality:.2f} on average (density {self.density:.3f}); images by their number "
            f"of labels: {numbers}"
        )
        pairs = self.pairs()
        if pairs:
            shown = (
                f"{self.classes[a]} + {self.classes[b]} {both:,} ({share:.0%} of either)"
                for a, b, both, share in pairs[:PAIRS]
            )
            more = f"; {len(pairs) - PAIRS:,} more pairs" if len(pairs) > PAIRS else ""
            yield f"together in most images: {', '.join(shown)}{more}"

    def plain(self) -> dict[str, Any]:
        """The facts as plain values."""
        return {
            "cardinality": self.cardinality,
            "density": self.density,
            "without": self.unlabelled,
            "per_image": {str(number): count for number, count in self.per_image.items()},
            "together": [
                {"labels": [self.classes[a], self.classes[b]], "images": both, "share_of_either": share}
                for a, b, both, share in self.pairs()
            ],
        }
