"""Folders of images for tests of data sets, and what loading them gives."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from graft.data import load_splits
from graft.data.splits import Splits

BLACK = io.BytesIO()
Image.new("RGB", (4, 4)).save(BLACK, "PNG")


def fill(root: Path, counts: Mapping[str, int]) -> Path:
    """A folder with so many images below each of its subfolders."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            (root / folder / f"{i}.png").write_bytes(BLACK.getvalue())
    return root


def load(name: str, root: Path | None, **options: Any) -> Splits:
    return load_splits(name, root=root, seed=options.pop("seed", 0), download=False, **options)


def sizes(splits: Splits) -> tuple[int, int, int]:
    return len(splits.train), len(splits.val), len(splits.test)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below `folder` with its size and time of change."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}
