"""The segments of the feature store on disk: their names, files and rows; `graft.features.store` has the layout."""

import contextlib
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from graft.data.contents import IDENTITY
from graft.data.feature_batches import Layout

FORMAT, EARLIER = 3, 2
META, TABLE = "meta.json", "rows.bin"

ROW = np.dtype([("image", IDENTITY), ("crc32", "<u4")])
"""An entry of `rows.bin`."""

Identities = npt.NDArray[np.bytes_]

OWN_FILE = re.compile(r"\d+\.bin|rows\.bin|meta\.json|\.meta\.json\.\d+\.[0-9a-f]{8}\.part")
OWN_FOLDER = re.compile(r"(?P<name>[0-9a-f]{64}(\.[0-9a-f]{16})?)(\.(?P<state>part|removed))?")


@dataclass(frozen=True)
class FeatureRequest:
    """A request for the features of some images.

    Attributes:
        key: plain values that, with the image, determine every byte of a row.
        layouts: of each tensor.
        images: identity of each image, `IDENTITY` [N]; equal images share a row.
        dataset: where the images are from; only runs with the same series and data set wait for one another.
        batches: computes the rows of the images at these indices, in order; called only for those that are not stored.
    """

    key: Mapping[str, Any]
    layouts: Sequence[Layout]
    images: Identities
    dataset: str
    batches: Callable[[npt.NDArray[np.int64]], Generator[tuple[Tensor, ...], None, None]]

    @property
    def digest(self) -> str:
        """The name of its series: SHA-256 of the key."""
        return digest_of(self.key)

    @property
    def claim(self) -> str:
        """The name of the claim to compute its rows."""
        return f"{self.digest}.{hashlib.sha256(self.dataset.encode()).hexdigest()[:16]}.claim"

    @property
    def row_bytes(self) -> int:
        """Size of a row on disk."""
        return sum(layout.row_bytes for layout in self.layouts)


def digest_of(key: Any, version: int = FORMAT) -> str:
    return hashlib.sha256(json.dumps([version, key], sort_keys=True).encode()).hexdigest()


class SegmentTable:
    """The rows of a segment, sorted for look-up, and which of them have been compared with their checksums.

    Args:
        rows: as in `rows.bin`.
        intact: whether they need not be compared.
    """

    def __init__(self, rows: npt.NDArray[np.void], *, intact: bool = False) -> None:
        self.rows = rows
        self.intact = np.full(len(rows), intact)
        self._order = np.argsort(self.rows["image"])

    def find(self, images: Identities) -> npt.NDArray[np.int64]:
        """The row of each image, int64 [N]; -1 where there is none."""
        if not len(self.rows):
            return np.full(len(images), -1, dtype=np.int64)
        positions = np.searchsorted(self.rows["image"], images, sorter=self._order)
        found = self._order[np.minimum(positions, len(self.rows) - 1)]
        return np.where(self.rows["image"][found] == images, found, -1)


def files_of(folder: Path, request: FeatureRequest) -> list[Path]:
    return [folder / f"{number}.bin" for number, _ in enumerate(request.layouts)]


def is_own(folder: Path, *, keyed: bool = True) -> bool:
    """Whether a folder is one of the store: by its name, its files, and (`keyed`) the key that it says it has."""
    name = OWN_FOLDER.fullmatch(folder.name)
    if name is None or folder.is_symlink() or not folder.is_dir():
        return False
    if not all(OWN_FILE.fullmatch(file) for file in os.listdir(folder)):
        return False
    if not keyed:
        return True
    try:
        key = json.loads((folder / META).read_text())["key"]
        return folder.name[:64] in (digest_of(key), digest_of(key, EARLIER))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remove_own(folder: Path) -> bool:
    """Remove a folder of the store, unless there is anything else in it; returns whether it is gone."""
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(folder)
        if not all(map(OWN_FILE.fullmatch, names)):
            return False
        for name in sorted(names, key=lambda name: name == META):  # whose it is, last
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    return True


def read_table(folder: Path, request: FeatureRequest) -> npt.NDArray[np.void] | None:
    """The table of a segment's rows, `ROW` [N], if the segment is complete and of the requested series; else None."""
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        if meta["layouts"] != [layout.to_dict() for layout in request.layouts]:
            return None
        content = (folder / TABLE).read_bytes()
        if digest_of(meta["key"]) != request.digest or zlib.crc32(content) != meta["crc32"]:
            return None
        table = np.frombuffer(content, ROW)
        for file, layout in zip(files_of(folder, request), request.layouts, strict=True):
            if file.stat().st_size != len(table) * layout.row_bytes:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return table


def are_intact(folder: Path, request: FeatureRequest, table: npt.NDArray[np.void], rows: npt.NDArray[np.int64]) -> bool:
    """Whether these rows (ascending) have the checksums of the segment's table; reads each of them."""
    try:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(file.open("rb")) for file in files_of(folder, request)]
            previous = -2
            for row, checksum in zip(rows.tolist(), table["crc32"][rows].tolist(), strict=True):
                found = 0
                for file, layout in zip(files, request.layouts, strict=True):
                    if row != previous + 1:
                        file.seek(row * layout.row_bytes)
                    found = zlib.crc32(file.read(layout.row_bytes), found)
                if found != checksum:
                    return False
                previous = row
    except OSError:
        return False
    return True
