"""A data source: images listed in a JSON-lines file, wherever they lie below the data root.

{"image": "2024/07/IMG_0001.jpg", "label": "tulip"}
{"image": "2024/07/IMG_0002.jpg", "label": "rose", "split": "test"}
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from graft.data.images import ImageSet
from graft.data.sources import Source
from graft.errors import ConfigError, DataError

WANTED = 'Give data.root=FOLDER, which holds manifest.jsonl: a line {"image": FILE, "label": CLASS} for each image.'
"""What Graft says where there is nothing at data.root."""

SPLITS = ("train", "val", "test")


def load(root: Path, *, file: str = "manifest.jsonl", test_fraction: float = 0.2, split_seed: int = 0) -> Source:
    """Read the images that a manifest lists.

    Graft supplies `root` (data.root); the other arguments are keys of the group `data`. Of what is returned, Graft
    draws validation images, shots and folds, finds unreadable images and keeps a fingerprint.

    Args:
        root: folder of the manifest, and of the images.
        file: name of the manifest.
        test_fraction: share of each class to test on, where no line has `"split": "test"`.
        split_seed: seed of that draw: not the run's, so that runs of all seeds are tested on the same images.

    Raises:
        ConfigError: `test_fraction` is not between 0 and 1.
        DataError: no manifest, or a line that is not understood; names the file and the line.
    """
    if not 0 < test_fraction < 1:
        raise ConfigError(f"data.test_fraction={test_fraction:g}: must be above 0 and below 1.")
    rows = list(_rows(root / file))
    classes = tuple(sorted({label for _, label, _ in rows}))
    parts = {}
    for split in SPLITS:
        chosen = sorted((image, label) for image, label, part in rows if part == split)
        parts[split] = ImageSet(
            names=[image for image, _ in chosen],
            labels=np.array([classes.index(label) for _, label in chosen], dtype=np.int64),
            paths=[root / image for image, _ in chosen],
        )
    published = {split: images for split, images in parts.items() if split != "train" and len(images)}
    return Source(
        classes,
        parts["train"],
        val=published.get("val"),
        test=published.get("test"),
        test_fraction=None if "test" in published else test_fraction,
        split_seed=split_seed,
    )


def _rows(manifest: Path) -> Iterator[tuple[str, str, str]]:
    """(image, label, split) of each line."""
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read ({error.strerror}).\n{WANTED}") from error
    for number, line in enumerate(lines, 1):
        where = f"{manifest}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image, label, split = row["image"], row["label"], row.get("split", "train")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: is not an object with image and label ({error!r}).\n{WANTED}") from error
        if not isinstance(image, str) or Path(image).is_absolute() or ".." in Path(image).parts:
            raise DataError(f'{where}: "image": {image!r} must be a path below {manifest.parent}.')
        if split not in SPLITS:
            raise DataError(f'{where}: "split": {split!r} must be one of {", ".join(SPLITS)}.')
        yield image, str(label), split
