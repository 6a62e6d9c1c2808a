"""Data sets that other installed packages contain, read without importing those packages."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft.data.images import ImageSet
from graft.data.sources.base import Source, require_test_fraction


def bundled_file(package: str, file: str) -> Path | None:
    """Path of a file in an installed package, which is not imported; None if there is no such file."""
    found = find_spec(package)
    folders = [] if found is None else found.submodule_search_locations or []
    return next((path for folder in folders if (path := Path(folder, file)).is_file()), None)


def embedded_pool(
    classes: tuple[str, ...],
    grey: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    names: Sequence[str],
    *,
    test_fraction: float,
    split_seed: int,
) -> Source:
    """A data set of grey-scale images that an installed package contains, not published in splits.

    Args:
        classes: class names.
        grey: [N, H, W], from 0 (black) to 1 (white).
        labels: class index of each image, length N.
        names: of the images, length N.
        test_fraction, split_seed: as in `Source`.

    Raises:
        ConfigError: `test_fraction` is not between 0 and 1.
    """
    require_test_fraction(test_fraction)
    pixels = np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=-1)
    images = ImageSet(names, labels.astype(np.int64), pixels=pixels)
    return Source(classes, images, test_fraction=test_fraction, split_seed=split_seed)
