"""Handwritten digits: 1,797 real 8x8 scans that come with scikit-learn (`load_digits`)."""

from pathlib import Path

import numpy as np

from graft.data.images import ImageSet
from graft.data.sources.base import Source
from graft.errors import ConfigError

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
    if not 0 < test_fraction < 1:
        raise ConfigError(f"data.options.test_fraction={test_fraction:g}: above 0 and below 1.")
    from sklearn.datasets import load_digits

    scans = load_digits()
    grey = np.rint(scans.images * (255 / 16)).astype(np.uint8)  # 0 … 16 → 0 … 255
    labels = scans.target.astype(np.int64)
    names = [f"{label}/{i:04d}" for i, label in enumerate(labels.tolist())]
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    return Source(CLASSES, ImageSet(names, labels, pixels=pixels), test_fraction=test_fraction, split_seed=split_seed)
