"""Is it a face? 200 real 25x25 photographs that come with scikit-image (`lfw_subset`), half of them faces."""

import numpy as np
import numpy.typing as npt

from graft.data.sources.base import Source, bundled_file, embedded_pool

CLASSES = ("face", "no_face")


def load(*, test_fraction: float = 0.5, split_seed: int = 0) -> Source:
    """One pool; with data.shots=K, K images of each class train and the others test.

    Args:
        test_fraction: share of each class to test on, without data.shots.
        split_seed: seed of that draw.
    """
    labels = np.repeat([0, 1], 100)
    names = [f"{CLASSES[label]}/{i % 100:03d}" for i, label in enumerate(labels.tolist())]
    return embedded_pool(CLASSES, photographs(), labels, names, test_fraction=test_fraction, split_seed=split_seed)


def photographs() -> npt.NDArray[np.float64]:
    """scikit-image's [200, 25, 25], from 0 to 1; read without importing it where they lie where they always have."""
    file = bundled_file("skimage", "data/lfw_subset.npy")
    if file is None:
        from skimage.data import lfw_subset

        return lfw_subset()
    return np.load(file)
