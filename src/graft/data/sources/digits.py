"""Handwritten digits: 1,797 real 8x8 scans that come with scikit-learn (`load_digits`)."""

from pathlib import Path

from graft.data.sources.base import Source, embedded_pool

EMBEDDED = True
CLASSES = tuple(str(digit) for digit in range(10))


def load(root: Path | None, *, seed: int, test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """One pool; with data.shots=K, K of each class train and the rest tests.

    Args:
        root: not used, the pictures are in memory.
        seed: not used here; the shots are drawn with it.
        test_fraction: share of each class to test on, without data.shots.
        split_seed: seed of that draw.
    """
    del root, seed
    from sklearn.datasets import load_digits

    scans = load_digits()
    names = [f"{label}/{i:04d}" for i, label in enumerate(scans.target.tolist())]
    grey = scans.images / 16  # written as 0 … 16
    return embedded_pool(CLASSES, grey, scans.target, names, test_fraction=test_fraction, split_seed=split_seed)
