"""Handwritten digits: 1,797 real 8x8 scans that come with scikit-learn (`load_digits`)."""

import numpy as np
import numpy.typing as npt

from graft.data.sources.base import Source, bundled_file, embedded_pool

CLASSES = tuple(str(digit) for digit in range(10))


def load(*, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """One pool; with data.shots=K, K images of each class train and the others test.

    Args:
        test_fraction: share of each class to test on, without data.shots.
        split_seed: seed of that draw.
    """
    values, labels = scans()
    names = [f"{label}/{i:04d}" for i, label in enumerate(labels.tolist())]
    grey = values.reshape(-1, 8, 8) / 16  # written as 0 … 16
    return embedded_pool(CLASSES, grey, labels, names, test_fraction=test_fraction, split_seed=split_seed)


def scans() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Values [N, 64] and labels [N] of scikit-learn's table, without half a second of importing scikit-learn where the
    table lies where it has always been."""
    file = bundled_file("sklearn", "datasets/data/digits.csv.gz")
    if file is None:
        from sklearn.datasets import load_digits

        return load_digits(return_X_y=True)
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)
