"""Faces or not: 200 photographs of 25x25 pixels that scikit-image contains (`lfw_subset`), half of them faces."""

import numpy as np
import numpy.typing as npt

from graft.data.embedded import bundled_file, embedded_pool
from graft.data.sources.base import Source

CLASSES = ("face", "no_face")


def load(*, test_fraction: float = 0.5, split_seed: int = 0) -> Source:
    """The photographs, not split; with data.shots=K, K images of each class train and all others test.

    Args:
        test_fraction: fraction of each class to test on without data.shots, in (0, 1).
        split_seed: seed of that draw.
    """
    labels = np.repeat([0, 1], 100)
    names = [f"{CLASSES[label]}/{i % 100:03d}" for i, label in enumerate(labels.tolist())]
    return embedded_pool(CLASSES, photographs(), labels, names, test_fraction=test_fraction, split_seed=split_seed)


def photographs() -> npt.NDArray[np.float64]:
    """scikit-image's photographs [200, 25, 25], from 0 to 1; its file is read directly if it is at the usual path."""
    file = bundled_file("skimage", "data/lfw_subset.npy")
    if file is None:
        from skimage.data import lfw_subset

        return lfw_subset()
    return np.load(file)
