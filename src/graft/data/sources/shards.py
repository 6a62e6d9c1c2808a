"""Data sets packed by `graft pack`: shards in a folder, on an HTTP server or in S3."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graft.config.fields import one_of
from graft.data.images import ImageSet
from graft.data.labels import Labels
from graft.data.packed import Packed
from graft.data.shards.cache import ShardCache
from graft.data.shards.index import INDEX, SPLITS, Index
from graft.data.shards.reading import Shards, open_shards
from graft.data.shards.stores import FolderStore, open_store, remote_address
from graft.data.sources.base import Source, require_test_fraction
from graft.data.stored import StoredImages
from graft.errors import ConfigError
from graft.system.files import readable_size

LAYOUT_HELP = (
    f"Give data.root=FOLDER, https://… or s3://BUCKET/PREFIX of a data set that graft pack has written, with {INDEX}."
)

ORDERS = ("auto", "random", "shards")


def present(root: Path) -> bool:
    """Whether a folder has an index, or an address can be reached.

    Raises:
        NotAvailable: an address that cannot be reached.
    """
    if remote_address(root) is None:
        return (root / INDEX).is_file()
    open_store(root).require(INDEX)
    return True


def load(
    root: Path,
    *,
    order: str = "auto",
    window: int = 16,
    cache: str | None = None,
    cache_gb: float = 10.0,
    test_fraction: float | None = None,
    split_seed: int | None = None,
) -> Source:
    """Read the index of a packed data set.

    Args:
        root: folder or address of its files.
        order: of the training images: "random", as from files; "shards": mixed from `window` shards at a time, each of
            which is read once per epoch; "auto": "shards" if the data set is remote and larger than the cache.
        window: number of shards.
        cache: folder of the shards of remote data sets.
        cache_gb: size limit of that folder, in 2**30 bytes.
        test_fraction, split_seed: as in `Source`, for a data set that was not published in splits; null: as packed.

    Raises:
        ConfigError: a value out of range, or a cache that is too small for `window` shards.
        DataError: no such data set, or it is damaged.
        NotAvailable: an address cannot be reached.
    """
    one_of("data.order", order, ORDERS)
    for key, value, allowed in (("window", window, window >= 1), ("cache_gb", cache_gb, cache_gb > 0)):
        if not allowed:
            raise ConfigError(f"data.{key}={value:g}: must be {'at least 1' if key == 'window' else 'more than 0'}.")
    store = open_store(root)
    kept = None
    if not isinstance(store, FolderStore):
        if cache is None:
            raise ConfigError(f"data.root={store.address}: needs data.cache=FOLDER for its shards.")
        kept = ShardCache(Path(cache).expanduser(), int(cache_gb * 2**30))
    index = open_shards(store, kept)
    shards = Shards(index, store, kept)
    notes = list(index.notes)
    if order == "shards" or (order == "auto" and kept is not None and not shards.whole):
        if kept is not None:
            _require_room(index, window, cache_gb, kept)
        shards.window = window
        total = readable_size(sum(shard.filesize for shard in index.shards))
        notes.append(
            f"training images are mixed from {window} of the {len(index.shards):,} shards ({total}) at a time "
            f"(data.order={order})"
        )
    parts = _parts(index, shards)
    return Source(
        index.classes,
        parts["train"],
        parts.get("val"),
        parts.get("test"),
        notes=tuple(notes),
        test_fraction=_drawn("test_fraction", test_fraction, index),
        split_seed=int(_drawn("split_seed", split_seed, index) or 0),
        test_on_rest=index.split["test_on_rest"],
        group_of=None if index.groups is None else Groups(index.names, index.groups),
        unused=index.unused,
        searched=(),
    )


def _drawn(key: str, value: float | None, index: Index) -> float | None:
    """`value`, or where it is null, that of the index."""
    packed: float | None = index.split[key]
    if value is None:
        return packed
    if index.split["test_fraction"] is None:
        raise ConfigError(f"data.{key}={value:g}: this data set has test images of its own.\nLeave it out.")
    if key == "test_fraction":
        require_test_fraction(value)
    return value


def _require_room(index: Index, window: int, cache_gb: float, cache: ShardCache) -> None:
    """Refuse a cache that cannot hold the shards of a window: each would be fetched many times."""
    needed = sum(sorted((shard.filesize for shard in index.shards), reverse=True)[: window + 1])
    if needed > cache.max_bytes:
        raise ConfigError(
            f"data.cache_gb={cache_gb:g}: {window + 1} shards of data.window={window} take {needed / 2**30:.2g}.\n"
            "Raise data.cache_gb, or lower data.window."
        )


def _parts(index: Index, shards: Shards) -> dict[str, ImageSet]:
    parts, begin = {}, 0
    for split in SPLITS:
        if not (count := index.counts.get(split, 0)) and split != "train":
            continue
        numbers = np.arange(begin, begin + count)
        if index.labels is None:
            labels: Labels = index.rows["label"][begin : begin + count].astype(np.int64)
        else:
            labels = index.labels[begin : begin + count].astype(np.int8)
        whole = count == len(index.names)
        names: Packed[str] = index.names if whole else index.names.select(numbers)
        parts[split] = ImageSet(names, labels, paths=StoredImages(shards, numbers))
        begin += count
    return parts


@dataclass
class Groups:
    """The group of the image of a name, as packed."""

    names: Packed[str]
    groups: Packed[str]
    _found: dict[str, str] | None = None

    def __call__(self, name: str) -> str:
        if self._found is None:
            self._found = dict(zip(self.names, self.groups, strict=True))
        return self._found[name]
