"""The entries of the feature store on disk: their names, their files, and how to read and remove one.

    DIGEST/     `meta.json` with the key, and the rows of each tensor in a `.bin` file

DIGEST is the SHA-256 of the key, in hex.
"""

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

from torch import Tensor

from graft.data.feature_batches import Layout

FORMAT = 2
CHUNK = 1 << 22
META = "meta.json"

ENTRY_FILE = re.compile(r"\d+\.bin|meta\.json|\.meta\.json\.\d+\.[0-9a-f]{8}\.part")
ENTRY = re.compile(r"(?P<digest>[0-9a-f]{64})(\.(?P<token>[0-9a-f]{16})\.(part|removed))?")


@dataclass(frozen=True)
class FeatureRequest:
    """A request for features.

    Attributes:
        key: plain values that determine every byte.
        layouts: of each tensor.
        count: number of rows of each tensor.
        batches: computes them, in order; called only if they are not stored.
    """

    key: Mapping[str, Any]
    layouts: Sequence[Layout]
    count: int
    batches: Callable[[], Generator[tuple[Tensor, ...], None, None]]

    @property
    def digest(self) -> str:
        """The name of its folder: SHA-256 of the key."""
        return digest_of(self.key)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return self.count * sum(layout.row_bytes for layout in self.layouts)


def digest_of(key: Any) -> str:
    """The name of an entry's folder: SHA-256 of its key and of the format."""
    return hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()


def files_of(folder: Path, request: FeatureRequest) -> list[Path]:
    """The files of an entry, one for each tensor."""
    return [folder / f"{number}.bin" for number, _ in enumerate(request.layouts)]


def is_entry(folder: Path, *, keyed: bool = True) -> bool:
    """Whether a folder is an entry: by its name, its files, and (`keyed`) the digest of the key in it."""
    name = ENTRY.fullmatch(folder.name)
    if name is None or folder.is_symlink() or not folder.is_dir():
        return False
    if not all(ENTRY_FILE.fullmatch(file) for file in os.listdir(folder)):
        return False
    if not keyed:
        return True
    try:
        return digest_of(json.loads((folder / META).read_text())["key"]) == name["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remove_entry(folder: Path) -> bool:
    """Remove an entry unless its folder has other files too; returns whether it is gone."""
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(folder)
        if not all(map(ENTRY_FILE.fullmatch, names)):
            return False
        for name in sorted(names, key=lambda name: name == META):  # last what identifies it
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    return True


def read_entry(folder: Path, request: FeatureRequest) -> dict[str, Any] | None:
    """The content of an entry's `meta.json` if the entry exists, is complete and has the right checksums; else None."""
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        expected = [request.count, [layout.to_dict() for layout in request.layouts]]
        if [meta["count"], meta["layouts"]] != expected or digest_of(meta["key"]) != request.digest:
            return None
        for file, layout, checksum in zip(files_of(folder, request), request.layouts, meta["crc32"], strict=True):
            if file.stat().st_size != request.count * layout.row_bytes:
                return None
            if _crc32(file) != checksum:
                return None
        float(meta["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as content:
        while chunk := content.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
