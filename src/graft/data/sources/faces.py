"""Is it a face? 200 real 25x25 photographs that come with scikit-image (`lfw_subset`), half of them faces."""

from pathlib import Path

import numpy as np

from graft.data.images import ImageSet
from graft.data.sources.base import Source
from graft.errors import ConfigError

EMBEDDED = True
CLASSES = ("face", "no_face")


def load(root: Path | None, *, seed: int, test_fraction: float = 0.5, split_seed: int = 0) -> Source:
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
    from skimage.data import lfw_subset

    grey = np.rint(lfw_subset() * 255).astype(np.uint8)
    labels = np.repeat(np.array([0, 1], dtype=np.int64), 100)
    names = [f"{CLASSES[label]}/{i % 100:03d}" for i, label in enumerate(labels.tolist())]
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    return Source(CLASSES, ImageSet(names, labels, pixels=pixels), test_fraction=test_fraction, split_seed=split_seed)
