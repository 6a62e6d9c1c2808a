"""Handwritten digits: 1,797 scans of 8x8 pixels that scikit-learn contains (`load_digits`)."""

import numpy as np
import numpy.typing as npt

from graft.data.embedded import bundled_file, embedded_pool
from graft.data.sources.base import Source

CLASSES = tuple(str(digit) for digit in range(10))


def load(*, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """The digits, not split; with data.shots=K, K images of each class train and all others test.

    Args:
        test_fraction: fraction of each class to test on without data.shots, in (0, 1).
        split_seed: seed of that draw.
    """
    values, labels = scans()
    names = [f"{label}/{i:04d}" for i, label in enumerate(labels.tolist())]
    grey = values.reshape(-1, 8, 8) / 16  # stored as 0 … 16
    return embedded_pool(CLASSES, grey, labels, names, test_fraction=test_fraction, split_seed=split_seed)


def scans() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Grey values [N, 64], from 0 to 16, and labels [N] of scikit-learn's table.

    Importing scikit-learn takes half a second, so its file is read directly if it is at the usual path.
    """
    file = bundled_file("sklearn", "datasets/data/digits.csv.gz")
    if file is None:
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)
