"""Packs a data set into shards: tar files in WebDataset's layout, each with images in random order, and an index.

An image `NAME` of class 3 becomes three members of a tar file: `000000041.jpg` with the bytes of the file, `….cls` with
the class index, and `….json` with name, class, split and group. A shard and its rows of the index get their names when
they are complete, so that an interrupted command resumes with the first shard that is missing.
"""

import hashlib
import io
import json
import posixpath
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from graft.data.contents import identity_of, row_of
from graft.data.images import ImageSet
from graft.data.labels import names_of
from graft.data.packed import Packed
from graft.data.reading import ENDINGS, to_rgb
from graft.data.scan import quick_check
from graft.data.shards.index import INDEX, ROW, Index, Shard
from graft.data.sources.base import Source
from graft.data.stored import StoredImage
from graft.errors import ConfigError, DataError, UnreadableImage
from graft.seeding import seed_of
from graft.system.cpu import available_cores
from graft.system.files import read_regular, write_atomically, writing_atomically

UNFINISHED = ".packing"
"""Folder in the output with the plan and the rows of finished shards, removed at the end."""

PLAN = "plan.json"
SAMPLED = 64
"""Number of images whose size determines the number of images in a shard."""

LARGEST = 1 << 31
"""Bytes of the largest file of an image."""

QUALITY = 90
RECORD = 10_240
"""Tar files are filled up to a multiple of this number of bytes."""


@dataclass(frozen=True)
class Options:
    """What `graft pack` may change.

    Attributes:
        shard_mb: size of a shard, in 10**6 bytes, approximately.
        short_side: images whose shorter side is longer are scaled down to this number of pixels and encoded as JPEG;
            None: all keep their bytes.
    """

    shard_mb: float = 128.0
    short_side: int | None = None


@dataclass(frozen=True)
class Packing:
    """A data set, and how it is divided into shards.

    Attributes:
        source: the data set.
        options: of the command.
        fingerprint: of the data set.
        each: number of images in a shard.
        unused: files and rows that the data set does not use, for the index.
        described: entries of index.json for people.
    """

    source: Source
    options: Options
    fingerprint: str
    each: int
    unused: Sequence[tuple[str, str]] = ()
    described: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, source: Source, options: Options, unused: Sequence[tuple[str, str]], described: Mapping[str, Any]
    ) -> "Packing":
        """The plan for a data set; reads `SAMPLED` images."""
        images = source.train
        sizes = []
        for index in images.spread(SAMPLED).tolist():
            content, _ = encoded(images, index, options)
            sizes.append(len(content))
        mean = sum(sizes) / max(1, len(sizes)) + 4 * tarfile.BLOCKSIZE
        each = max(1, round(options.shard_mb * 1e6 / mean))
        return cls(source, options, source.fingerprint(), each, unused, described)

    @property
    def total(self) -> int:
        """Number of images."""
        return sum(map(len, self.source.parts()))

    def shards(self) -> Iterator[tuple[str, str, npt.NDArray[np.int64], int]]:
        """(name, split, indices into the split, number of the split's first row) of each shard."""
        first = 0
        for split, images in self.source.named_parts().items():
            order = np.random.RandomState(seed_of("pack", split) % 2**32).permutation(len(images))
            for number, begin in enumerate(range(0, len(order), self.each)):
                yield f"{split}-{number:06d}.tar", split, order[begin : begin + self.each], first
            first += len(images)

    def plan(self) -> dict[str, Any]:
        """What must be the same to resume an unfinished output."""
        return {"fingerprint": self.fingerprint, "each": self.each, **asdict(self.options)}


def require_output(folder: Path, key: str = "output") -> None:
    """Refuse a folder with other content than an unfinished data set.

    Raises:
        ConfigError: names its content and the way out.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{key}={folder}: is a file.\nGive a new folder.")
    if (folder / INDEX).exists():
        raise ConfigError(f"{key}={folder}: holds a packed data set.\nGive another folder, or remove it.")
    found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".lock"))
    if found and not (folder / UNFINISHED / PLAN).is_file():
        raise ConfigError(f"{key}={folder}: is not empty ({', '.join(found[:3])}).\nGive a new folder.")


def pack(
    packing: Packing,
    folder: Path,
    done: Callable[[int], object] = lambda count: None,
    refuse: Callable[[Sequence[str]], str] | None = None,
) -> Index:
    """Write a data set to `folder`, which the caller has locked; finished shards of an earlier call are kept.

    Args:
        packing: the data set.
        folder: empty, or left unfinished by an earlier call for the same data set.
        done: called with the number of images of each shard that is complete.
        refuse: the error message for these unreadable images; None: they are packed as they are.

    Raises:
        ConfigError: the folder holds an unfinished output of another data set or other options.
        DataError: images are unreadable, unless `refuse` is None.
    """
    plan = folder / UNFINISHED / PLAN
    if plan.is_file() and json.loads(plan.read_bytes()) != packing.plan():
        raise ConfigError(
            f"output={folder}: holds an unfinished output of other images or options.\n"
            "Give another folder, or remove it."
        )
    plan.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(plan, json.dumps(packing.plan()).encode())
    rows = np.zeros(packing.total, ROW)
    faults: dict[int, tuple[str, str]] = {}
    shards: list[Shard] = []
    parts = packing.source.named_parts()
    with ThreadPoolExecutor(2 * available_cores(), "pack") as pool:
        for number, (name, split, indices, first) in enumerate(packing.shards()):
            shard, packed, found = _shard(packing, folder, name, split, indices, first, pool)
            packed["shard"] = number
            rows[first + indices] = packed
            faults |= found
            shards.append(shard)
            done(len(indices))
    names = _packed(name for images in parts.values() for name in images.names)
    if faults and refuse is not None:
        raise DataError(refuse([f"{names[row]} ({kind}: {reason})" for row, (kind, reason) in sorted(faults.items())]))
    index = Index(
        classes=packing.source.classes,
        counts={split: len(images) for split, images in parts.items()},
        shards=tuple(shards),
        rows=rows,
        names=names,
        groups=_groups(packing.source),
        faults=faults,
        split={
            "test_fraction": packing.source.test_fraction,
            "split_seed": packing.source.split_seed,
            "test_on_rest": packing.source.test_on_rest,
        },
        notes=packing.source.notes,
        unused=tuple(packing.unused),
        labels=None
        if packing.source.train.labels.ndim == 1
        else np.concatenate([images.labels for images in parts.values()]).astype(np.int8),
    )
    index.write(folder, packing.described or {})
    shutil.rmtree(folder / UNFINISHED)
    return index


def _packed(texts: Iterable[str]) -> Packed[str]:
    return Packed.of(texts, str)


def _groups(source: Source) -> Packed[str] | None:
    if source.group_of is None:
        return None
    return _packed(source.group_of(name) for images in source.parts() for name in images.names)


Faults = dict[int, tuple[str, str]]


def _shard(
    packing: Packing,
    folder: Path,
    name: str,
    split: str,
    indices: npt.NDArray[np.int64],
    first: int,
    pool: ThreadPoolExecutor,
) -> tuple[Shard, npt.NDArray[np.void], Faults]:
    """(shard, `ROW` of each image in it, row → fault): as an earlier call has left it, or written now."""
    described, packed = (folder / UNFINISHED / f"{name}{ending}" for ending in (".json", ".npy"))
    if described.is_file() and packed.is_file() and (folder / name).is_file():
        content = json.loads(described.read_bytes())
        shard = Shard(**content["shard"])
        if (folder / name).stat().st_size == shard.filesize:
            return shard, np.load(packed), {int(row): tuple(fault) for row, fault in content["faults"].items()}
    images = packing.source.named_parts()[split]
    rows = np.zeros(len(indices), ROW)
    faults: Faults = {}
    with writing_atomically(folder / name) as file:
        tar = _TarWriter(file.write)
        for position, (index, (content, fault)) in enumerate(_read_ahead(images, indices, packing.options, pool)):
            row = first + index
            if fault is not None:
                faults[row] = fault
            start = tar.add(f"{row:09d}{_ending(images, index, content)}", content)
            label, labels = -1, dict[str, Any](labels=names_of(images.labels[index], packing.source.classes))
            if images.labels.ndim == 1:
                label = int(images.labels[index])
                labels = {"class": packing.source.classes[label], "label": label}
                tar.add(f"{row:09d}.cls", str(label).encode())
            tar.add(f"{row:09d}.json", _description(packing.source, split, images.names[index], labels))
            rows[position] = (label, 0, start, len(content), row_of(content)[2], identity_of(content))
        tar.close()
    shard = Shard(name, len(indices), tar.offset, tar.sha256.hexdigest())
    table = io.BytesIO()
    np.save(table, rows)
    write_atomically(packed, table.getvalue())
    write_atomically(described, json.dumps({"shard": asdict(shard), "faults": faults}).encode())
    return shard, rows, faults


def _description(source: Source, split: str, name: str, labels: Mapping[str, Any]) -> bytes:
    described = {"name": name, **labels, "split": split}
    if source.group_of is not None:
        described["group"] = source.group_of(name)
    return json.dumps(described).encode()


def _read_ahead(
    images: ImageSet, indices: npt.NDArray[np.int64], options: Options, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, tuple[bytes, tuple[str, str] | None]]]:
    """(index, its file and fault) of each image, in order, a few of which are read ahead."""
    waiting: deque[tuple[int, Future[tuple[bytes, tuple[str, str] | None]]]] = deque()
    for index in indices.tolist():
        waiting.append((index, pool.submit(encoded, images, index, options)))
        if len(waiting) > 4 * available_cores():
            number, result = waiting.popleft()
            yield number, result.result()
    for number, result in waiting:
        yield number, result.result()


def encoded(images: ImageSet, index: int, options: Options) -> tuple[bytes, tuple[str, str] | None]:
    """(file of an image, why it is unreadable or None); an image in memory becomes a PNG file."""
    if images.pixels is not None:
        content, fault = _png(Image.fromarray(images.pixels[index])), None
    else:
        file = images.stored[index]
        error = quick_check(file, images.image_format)
        fault = None if error is None else (error.kind, error.reason)
        try:
            content = file.archive.read(file.number) if isinstance(file, StoredImage) else read_regular(file, LARGEST)
        except UnreadableImage as damaged:
            return b"", (damaged.kind, damaged.reason)
        except OSError as unreadable:
            return b"", fault or ("refused", unreadable.strerror or str(unreadable))
    if options.short_side is None or fault is not None:
        return content, fault
    return _smaller(content, options.short_side), None


def _smaller(content: bytes, short_side: int) -> bytes:
    """The image scaled down to a JPEG of this shorter side; unchanged if it is no larger."""
    with Image.open(io.BytesIO(content)) as image:
        if min(image.size) <= short_side:
            return content
        image.draft(None, (2 * short_side, 2 * short_side))
        rgb = to_rgb(image)
    scale = short_side / min(rgb.size)
    width, height = (max(short_side, round(scale * side)) for side in rgb.size)
    smaller = io.BytesIO()
    rgb.resize((width, height), Image.Resampling.LANCZOS).save(smaller, "JPEG", quality=QUALITY, subsampling=0)
    return smaller.getvalue()


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


_USUAL = {ending: endings[0] for endings in ENDINGS.values() for ending in endings} | {".pgm": ".pgm"}
"""Ending of a file -> the usual one of its format."""


def _ending(images: ImageSet, index: int, content: bytes) -> str:
    """The ending of a member: that of the file, as readers of WebDataset know it; by its first bytes if it has none."""
    if content.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if content.startswith(b"\x89PNG"):
        return ".png"
    ending = posixpath.splitext(images.names[index])[1].lower()
    return _USUAL.get(ending, ".img")


class _TarWriter:
    """Writes members of a tar file (POSIX ustar) without times and owners, so that equal images give equal files."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self.offset, self.sha256 = 0, hashlib.sha256()

    def add(self, name: str, content: bytes) -> int:
        """Append a member; returns the offset of its content."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        self._append(member.tobuf(tarfile.USTAR_FORMAT))
        start = self.offset
        self._append(content)
        self._append(bytes(-len(content) % tarfile.BLOCKSIZE))
        return start

    def close(self) -> None:
        """Append the end of the tar file."""
        self._append(bytes(2 * tarfile.BLOCKSIZE))
        self._append(bytes(-self.offset % RECORD))

    def _append(self, content: bytes) -> None:
        self._write(content)
        self.sha256.update(content)
        self.offset += len(content)
