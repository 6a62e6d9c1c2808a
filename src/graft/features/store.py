"""Features on disk, one row for each image, shared by runs: each row is computed once, by the first run that needs it.

They are in one folder, `graft-features`, which this module creates and marks (see `MARKER`). A series is all rows that
were computed with the same layers, preprocessing, precision, … (its key); it grows by segments, which never change once
they are complete. For each SHA-256 of a key (DIGEST, in hex) the folder contains:

    DIGEST.NUMBER/              a segment: `meta.json` with the key, `rows.bin` with the identity of each row's image
                                and the row's CRC-32, and the rows of each tensor in a `.bin` file
    DIGEST.NUMBER.part/         the same, while it is written
    DIGEST.NUMBER.removed/      being removed
    DIGEST.NUMBER.TOKEN.lease   a run writes or uses this segment (see `graft.system.leases`)
    DIGEST.DATASET.claim        a run computes rows of this series for images of this data set, and others wait
    DIGEST/                     features of an earlier version, which are not read

Only files and folders of these names are counted or removed, and only folders whose `meta.json` contains the key of
that digest and that contain no other files.
"""

import atexit
import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.config import FEATURES
from graft.data.feature_batches import Segment
from graft.features.segments import (
    META,
    OWN_FOLDER,
    ROW,
    TABLE,
    FeatureRequest,
    SegmentTable,
    are_intact,
    files_of,
    is_own,
    read_table,
    remove_own,
)
from graft.system.files import readable_size, sync, write_atomically
from graft.system.leases import Lease, Watch, is_live

log = logging.getLogger("graft")

POLL_SECONDS = 0.2
MARKER = "CACHEDIR.TAG"
TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# Features of frozen layers, computed by Graft (paths.cache). May be removed while no run is under way.
# A directory with this file is left out of backups by programs that follow https://bford.info/cachedir/
"""

_LEASES = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16}){1,2}\.lease")
_STALE_CLAIMS = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16})?\.claim\.[0-9a-f]{16}\.stale")


class NoRoom(OSError):
    """The features do not fit into cache.max_gb or on the disk; the message says which."""


class NotOurs(OSError):
    """The folder of the features exists, but was not created by Graft."""


@dataclass(frozen=True)
class Stored:
    """Features in the store, protected from removal.

    Attributes:
        segments: that contain them.
        rows: (segment, row in it) of each requested image, int64 [N, 2].
        computed: number of rows that this run computed.
        seconds: duration of that computation.
    """

    segments: tuple[Segment, ...]
    rows: npt.NDArray[np.int64]
    computed: int
    seconds: float


class FeatureStore:
    """The features in `cache`/graft-features.

    A segment gets its name when it is complete, so it does not matter if two processes compute the same rows: the claim
    that one computes and others wait only saves work, and is given up for a holder that is dead, stopped or out of
    reach. Whoever uses a segment holds a lease of its own on it; whoever removes one renames it first and looks for
    leases again. Both change the folder before they look, so over NFS too one of them sees the other.

    In a cache that its group or everybody may write to, so may they to what is made in it.

    Args:
        cache: `paths.cache`; made when it is needed.
        max_bytes: the longest unused segments are removed to stay below, but none that a run is using.
    """

    def __init__(self, cache: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = cache / FEATURES, max_bytes
        self.token = secrets.token_hex(8)
        self._leases: dict[str, Lease] = {}
        self._watched: dict[str, Watch] = {}
        self._tables: dict[Path, SegmentTable] = {}
        self._named_earlier = False

    def obtain(self, requests: Sequence[FeatureRequest]) -> list[Stored]:
        """The features of all `requests`: those that are stored, and those that this process or another computes.

        Raises:
            NoRoom: they do not fit, and nothing more can be removed.
            NotOurs: there is a folder of that name that Graft has not made.
            OSError: they cannot be written or read.
        """
        self._open()
        found: dict[int, Stored] = {}
        announced: set[str] = set()
        before = set(self._leases)
        try:
            while len(found) < len(requests):
                missing = [number for number in range(len(requests)) if number not in found]
                for number in missing:
                    stored = self._take(requests[number])
                    if stored is not None:
                        found[number] = stored
                if not found.keys() & missing:
                    self._wait(requests[missing[0]].claim, announced)
        except BaseException:
            for name in self._leases.keys() - before:
                self._leases.pop(name).release()
            raise
        return [found[number] for number in range(len(requests))]

    def close(self) -> None:
        """Release all features, so that other runs may remove them."""
        for lease in self._leases.values():
            lease.release()
        self._leases.clear()
        atexit.unregister(self.close)

    def _open(self) -> None:
        """Create the folder, or check that Graft created it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not os.listdir(self.folder):  # made for Graft by a person
                write_atomically(self.folder / MARKER, TAG)
        if not self.folder.exists():
            new = self.folder.with_name(f"{FEATURES}.{self.token}.part")
            new.mkdir()
            try:
                write_atomically(new / MARKER, TAG)
                self._share(new)
                self._share(new / MARKER)
                with contextlib.suppress(OSError):  # another process was first
                    new.rename(self.folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    (new / MARKER).unlink()
                    new.rmdir()
        try:
            ours = (self.folder / MARKER).read_bytes() == TAG
        except FileNotFoundError:
            ours = False
        if not ours:
            raise NotOurs(
                f"{self.folder} was not made by Graft (it has no {MARKER} of Graft's); nothing is written there"
            )
        self._name_earlier()

    def _name_earlier(self) -> None:
        """Log once how large the features of an earlier version are, which nothing reads any more."""
        if not self._named_earlier:
            self._named_earlier = True
            sizes = [size for folder, _, size in self._entries() if "." not in folder.name]
            if sizes:
                log.info(
                    "cache  %s of features of an earlier version in %s are not read any more; they are removed when "
                    "their room is needed",
                    readable_size(sum(sizes)),
                    self.folder,
                )

    def _share(self, path: Path) -> None:
        """Let those who may write to the folder above use `path` as well, regardless of this process's umask.

        Where only owners may remove what they have made (the sticky bit, as in /tmp), others may read it only.
        """
        above = self.folder.parent.stat().st_mode
        if not above & 0o022:
            return
        mode = above & (0o7777 if path.is_dir() else 0o666)
        if above & 0o1000 and path.parent != self.folder.parent:
            mode &= ~0o7022
        with contextlib.suppress(OSError):  # a file system without modes
            path.chmod(mode)

    def _take(self, request: FeatureRequest) -> Stored | None:
        """The features of a request, computed as far as they are not stored; None while another process computes."""
        segments, rows = self._find(request)
        if (rows[:, 0] >= 0).all():
            return self._used(segments, rows)
        claim = self._claim(request.claim)
        if claim is None:
            return None
        with contextlib.closing(claim):
            segments, rows = self._find(request)  # another process may just have finished
            missing = np.flatnonzero(rows[:, 0] < 0)
            started = time.perf_counter()
            if len(missing):
                self._compute(request, missing, claim)
                segments, rows = self._find(request)
            seconds = round(time.perf_counter() - started, 2)
        return self._used(segments, rows, len(missing), seconds)

    def _used(
        self, segments: Sequence[Segment], rows: npt.NDArray[np.int64], computed: int = 0, seconds: float = 0.0
    ) -> Stored:
        """Those of the segments that have these rows, marked as used now."""
        if (rows[:, 0] < 0).any():
            raise OSError(f"{self.folder}: features were removed while this run was using them")
        used, numbers = np.unique(rows[:, 0], return_inverse=True)
        chosen = tuple(segments[number] for number in used.tolist())
        for segment in chosen:
            with contextlib.suppress(PermissionError):  # another user's
                os.utime(segment.files[0].with_name(META))
        return Stored(chosen, np.stack([numbers.reshape(-1), rows[:, 1]], 1), computed, seconds)

    def _find(self, request: FeatureRequest) -> tuple[list[Segment], npt.NDArray[np.int64]]:
        """(complete segments of the series, (segment, row in it) of each requested image, -1 where there is none)."""
        segments: list[Segment] = []
        rows = np.full((len(request.images), 2), -1, dtype=np.int64)
        for folder in self.folder.glob(f"{request.digest}.{'[0-9a-f]' * 16}"):
            if folder not in self._tables and (rows_of := read_table(folder, request)) is not None:
                self._tables[folder] = SegmentTable(rows_of)
            elif folder not in self._tables:
                self._discard(folder)
        series = {folder: table for folder, table in self._tables.items() if folder.name[:64] == request.digest}
        for folder in sorted(series, key=lambda folder: (-len(series[folder].rows), folder.name)):  # few, large ones
            missing = np.flatnonzero(rows[:, 0] < 0)
            found = series[folder].find(request.images[missing])
            there = found >= 0
            if there.any() and self._is_usable(folder, request, np.unique(found[there])):
                rows[missing[there]] = np.stack([np.full(there.sum(), len(segments)), found[there]], 1)
                segments.append(Segment(tuple(files_of(folder, request)), len(series[folder].rows)))
        return segments, rows

    def _is_usable(self, folder: Path, request: FeatureRequest, rows: npt.NDArray[np.int64]) -> bool:
        """Whether these rows (ascending) of a segment have their checksums; if so, the segment is leased."""
        table = self._tables[folder]
        self._lease(folder.name)  # before looking, so that who removes the segment sees the lease
        if are_intact(folder, request, table.rows, rows[~table.intact[rows]]):
            table.intact[rows] = True
            return True
        self._discard(folder)
        self._leases.pop(folder.name).release()
        return False

    def _discard(self, folder: Path) -> None:
        """Use a damaged segment no more, and remove it unless another process is using it."""
        self._tables[folder] = SegmentTable(np.zeros(0, ROW))
        if folder.is_dir():  # else another process has removed it
            log.warning("cache  %s is damaged; its features are computed again", folder)
            self._remove(folder, damaged=True)

    def _lease(self, name: str) -> None:
        """Protect a segment, until `close`, from removal by other processes."""
        if name not in self._leases:
            self._leases[name] = Lease(self.folder / f"{name}.{self.token}.lease", self._share)
            atexit.register(self.close)

    def _claim(self, name: str) -> "Claim | None":
        """The right to compute; None while another process has it."""
        path = self.folder / name
        watch = self._watched.setdefault(name, Watch(path))
        holder = watch.read()
        reason = watch.why_abandoned()
        if reason is not None:
            log.warning("cache  %s %s; this run computes the features instead", holder or "another run", reason)
            try:
                watch.clear()
            except PermissionError:
                return Claim(None)
        try:
            return Claim(Lease(path, self._share))
        except FileExistsError:
            return None

    def _wait(self, name: str, announced: set[str]) -> None:
        """Wait a moment for another process; say once for each whom for."""
        holder = str(self._watched[name].read() or "another run")
        if holder not in announced:
            log.info("cache  waiting for %s, which computes features of the same data set …", holder)
        announced.add(holder)
        time.sleep(POLL_SECONDS)

    def _compute(self, request: FeatureRequest, missing: npt.NDArray[np.int64], claim: "Claim") -> None:
        """Compute the rows of the images at the indices `missing`, and store them as a segment."""
        _, first = np.unique(request.images[missing], return_index=True)  # equal images share a row
        new = missing[np.sort(first)]
        table = np.zeros(len(new), ROW)
        table["image"] = request.images[new]
        folder = self.folder / f"{request.digest}.{secrets.token_hex(8)}"
        self._lease(folder.name)
        self._make_room(len(new) * (request.row_bytes + ROW.itemsize))
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir()
        meta = {
            "key": dict(request.key),
            "count": len(new),
            "layouts": [layout.to_dict() for layout in request.layouts],
        }
        try:
            self._write_meta(part, meta)  # whose it is, should this process be killed
            self._write_rows(part, request, new, table, claim)
            if (self._find(request)[1][missing, 0] >= 0).all():
                return  # a run to which the claim passed, because this one was stopped, has computed them meanwhile
            self._write_meta(part, meta | {"crc32": zlib.crc32((part / TABLE).read_bytes())})
            self._share(part)
            part.rename(folder)
            sync(self.folder)
            self._tables[folder] = SegmentTable(table, intact=True)
        finally:
            remove_own(part)

    def _write_meta(self, folder: Path, meta: Mapping[str, Any]) -> None:
        write_atomically(folder / META, (json.dumps(meta, indent=2) + "\n").encode())
        self._share(folder / META)

    def _write_rows(
        self,
        folder: Path,
        request: FeatureRequest,
        new: npt.NDArray[np.int64],
        table: npt.NDArray[np.void],
        claim: "Claim",
    ) -> None:
        """Write every batch as it comes, then the table of the rows with their checksums."""
        done = 0
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(file.open("xb")) for file in files_of(folder, request)]
            for file, layout in zip(files, request.layouts, strict=True):
                file.truncate(len(new) * layout.row_bytes)  # so that others count the room as taken
            for batch in stack.enter_context(contextlib.closing(request.batches(new))):
                claim.progress()
                count = len(batch[0])
                sums = [0] * count
                for file, layout, tensor in zip(files, request.layouts, batch, strict=True):
                    content, size = layout.to_bytes(tensor), layout.row_bytes
                    sums = [zlib.crc32(content[row * size : (row + 1) * size], sums[row]) for row in range(count)]
                    file.write(content)
                table["crc32"][done : done + count] = sums[: max(0, len(new) - done)]
                done += count
        if done != len(new):
            raise RuntimeError(f"{done} rows of features for {len(new)} images")
        (folder / TABLE).write_bytes(table.tobytes())
        for written in (*files_of(folder, request), folder / TABLE):
            sync(written)
            self._share(written)

    def _make_room(self, needed: int) -> None:
        self._remove_left_overs()
        entries = sorted(self._entries(), key=lambda entry: entry[1])
        total = sum(size for _, _, size in entries)
        for folder, _, size in entries:
            if total + needed <= self.max_bytes:
                break
            if folder.name not in self._leases:
                total -= size if self._remove(folder) else 0
        if total + needed > self.max_bytes:
            raise NoRoom(
                f"cache.max_gb={self.max_bytes / 2**30:g}: {self.folder} is full of what other runs are using, "
                "or of what this user may not remove"
            )
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise NoRoom(f"{self.folder} has {readable_size(free)} free, and {readable_size(needed)} are needed")

    def _entries(self) -> Iterator[tuple[Path, float, int]]:
        """(folder, time of last use, bytes) of all features, half-written ones too."""
        for folder in self.folder.iterdir():
            with contextlib.suppress(OSError):  # removed by another run meanwhile
                if is_own(folder):
                    used = (folder / META).stat().st_mtime
                    yield folder, used, sum(file.stat().st_size for file in folder.iterdir())

    def _remove_left_overs(self) -> None:
        """Remove what processes left that have ended: leases, claims, and what they had written or removed half."""
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another user's, or removed by another run meanwhile
                if _STALE_CLAIMS.fullmatch(path.name) or (_LEASES.fullmatch(path.name) and not self._is_live(path)):
                    path.unlink()
                match = OWN_FOLDER.fullmatch(path.name)
                if match and match["state"] and not self._in_use(match) and not self._remove(path):
                    path.rmdir()  # nothing had been written; fails unless it is empty

    def _remove(self, folder: Path, *, damaged: bool = False) -> bool:
        """Remove an entry unless another run is using or writing it; one that is `damaged` need not say its key."""
        match = OWN_FOLDER.fullmatch(folder.name)
        if match is None or not is_own(folder, keyed=not damaged) or self._in_use(match):
            return False
        try:
            if match["state"] is None:
                removed = folder.with_name(f"{folder.name}.removed")
                folder.rename(removed)
                if self._in_use(match):  # since a moment ago
                    removed.rename(folder)
                    return False
                folder = removed
            return remove_own(folder)
        except OSError:  # another user's, or removed by another run meanwhile
            return not folder.exists()

    def _in_use(self, folder: re.Match[str]) -> bool:
        """Whether a lease of another process protects a folder: its writer's while it is written, else anyone's."""
        leases = self.folder.glob(f"{folder['name']}.*lease")
        return any(self._is_live(path) for path in leases if not path.name.endswith(f".{self.token}.lease"))

    def _is_live(self, path: Path) -> bool:
        return is_live(path, next(iter(self._leases.values())).renew())


class Claim:
    """The right to compute features, by a lease; None where another user's could not be removed.

    Args:
        lease: of the claim's file.
    """

    def __init__(self, lease: Lease | None) -> None:
        self._lease = lease

    def progress(self) -> None:
        """Report that the computation is under way."""
        if self._lease is not None:
            self._lease.progress()

    def close(self) -> None:
        """Let others compute."""
        if self._lease is not None:
            self._lease.release()
