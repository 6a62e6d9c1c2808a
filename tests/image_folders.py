"""Folders of small images, loading them as a data set, and comparing folders before and after."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from graft.data.loading import load_splits
from graft.data.splits import Splits

BLACK = io.BytesIO()
Image.new("RGB", (4, 4)).save(BLACK, "PNG")


def fill(root: Path, counts: Mapping[str, int]) -> Path:
    """Create in `root` each subfolder of `counts` with that number of images; returns `root`."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(BLACK.getvalue())
    return root


def load(name: str, root: Path | None, **options: Any) -> Splits:
    """The splits of data set `name`, without a download; `seed` defaults to 0."""
    return load_splits(name, root=root, seed=options.pop("seed", 0), download=False, **options)


def sizes(splits: Splits) -> tuple[int, int, int]:
    """The number of training, validation and test images."""
    return len(splits.train), len(splits.val), len(splits.test)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every path in `folder`, for a comparison before and after."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
