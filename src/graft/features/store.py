"""Features on disk, shared by runs: computed by the first run that needs them; the least recently used are removed.

They are in one folder, `graft-features`, which this module creates and marks (see `MARKER`). For each digest of a key
(SHA-256, in hex) it contains:

    DIGEST/                 complete features: `meta.json` with the key, and the rows of each tensor in a `.bin` file
    DIGEST.TOKEN.part/      the same, while it is written by the owner of DIGEST.TOKEN.lease
    DIGEST.TOKEN.removed/   being removed
    DIGEST.TOKEN.lease      a run uses or waits for these features (see `graft.system.leases`)
    DIGEST.claim            a run computes these features, and others wait

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

from graft.config import FEATURES
from graft.features.entries import ENTRY, META, FeatureRequest, files_of, is_entry, read_entry, remove_entry
from graft.system.files import readable_size, sync, write_atomically
from graft.system.leases import Lease, Watch, is_live

log = logging.getLogger("graft")

POLL_SECONDS = 0.2
MARKER = "CACHEDIR.TAG"
TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# Features of frozen layers, computed by Graft (paths.cache). May be removed while no run is under way.
# A directory with this file is left out of backups by programs that follow https://bford.info/cachedir/
"""

_LEASES = re.compile(r"(?P<digest>[0-9a-f]{64})\.(?P<token>[0-9a-f]{16})\.lease")
_STALE_CLAIMS = re.compile(r"[0-9a-f]{64}\.claim\.[0-9a-f]{16}\.stale")


class NoRoom(OSError):
    """The features do not fit into cache.max_gb or on the disk; the message names which."""


class NotOurs(OSError):
    """The folder of the features exists, but was not created by Graft."""


@dataclass(frozen=True)
class Stored:
    """Features in the store, protected from removal.

    Attributes:
        files: one for each tensor.
        computed: whether this run computed them.
        seconds: duration of the computation, by whichever run.
    """

    files: tuple[Path, ...]
    computed: bool
    seconds: float


class FeatureStore:
    """The features in `cache`/graft-features.

    A folder gets its name when it is complete, so it does not matter if two processes compute the same features: the
    claim that one computes and others wait only saves work, and is dropped for a holder that is dead, stopped or out
    of reach. Whoever uses features holds a lease on them; whoever removes some renames them first and checks
    for leases again. Both change the folder before they check, so over NFS too one of them notices the other.

    In a cache that its group or everybody may write to, so may they to what is made in it.

    Args:
        cache: `paths.cache`; made when it is needed.
        max_bytes: the least recently used features are removed to stay within it, but none that a run is using.
    """

    def __init__(self, cache: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = cache / FEATURES, max_bytes
        self.token = secrets.token_hex(8)
        self._leases: dict[str, Lease] = {}
        self._watched: dict[str, Watch] = {}

    def obtain(self, request: Sequence[FeatureRequest]) -> list[Stored]:
        """All that is `request`: what is there, what this process computes, and what others compute meanwhile.

        Raises:
            NoRoom: it does not fit, and nothing more can be removed.
            NotOurs: there is a folder of that name that Graft has not made.
            OSError: it cannot be written or read.
        """
        self._open()
        found: dict[str, Stored] = {}
        announced: set[str] = set()
        before = set(self._leases)
        try:
            while missing := [one for one in request if one.digest not in found]:
                for one in missing:
                    stored = self._take(one)
                    if stored is not None:
                        found[one.digest] = stored
                if all(one.digest not in found for one in missing):
                    self._wait(missing[0].digest, announced)
        except BaseException:
            for name in self._leases.keys() - before:
                self._leases.pop(name).release()
            raise
        return [found[one.digest] for one in request]

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
        """One entry, computed if need be; None while another process computes it."""
        name, folder = request.digest, self.folder / request.digest
        if name not in self._leases:  # before the check, so that a process that removes it finds the lease
            self._leases[name] = Lease(self.folder / f"{name}.{self.token}.lease", self._share)
            atexit.register(self.close)
        meta, computed = read_entry(folder, request), False
        if meta is None:
            claim = self._claim(name)
            if claim is None:
                return None
            with contextlib.closing(claim):
                meta = read_entry(folder, request)  # another process may just have finished
                if meta is None:
                    meta, computed = self._compute(folder, request, claim)
        with contextlib.suppress(PermissionError):  # another user's
            os.utime(folder / META)
        return Stored(tuple(files_of(folder, request)), computed, meta["seconds"])

    def _claim(self, name: str) -> "Claim | None":
        """The right to compute; None while another process has it."""
        path = self.folder / f"{name}.claim"
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
        """Wait a moment for another process; name each one once in the log."""
        holder = str(self._watched[name].read() or "another run")
        if holder not in announced:
            log.info("cache  waiting for %s, which computes the same features …", holder)
        announced.add(holder)
        time.sleep(POLL_SECONDS)

    def _compute(self, folder: Path, request: FeatureRequest, claim: "Claim") -> tuple[dict[str, Any], bool]:
        """(description of the entry, whether this process made it)."""
        if folder.exists():
            log.warning("cache  %s is damaged; its features are computed again", folder)
            if not self._remove(folder, damaged=True):
                raise OSError(f"{folder} is damaged, and it is in use or holds files that are not Graft's")
        self._make_room(request.bytes)
        part = folder.with_name(f"{folder.name}.{self.token}.part")
        part.mkdir()
        started = time.perf_counter()
        meta = {
            "key": dict(request.key),
            "count": request.count,
            "layouts": [layout.to_dict() for layout in request.layouts],
        }
        try:
            self._write_meta(part, meta)  # whose it is, should this process be killed
            meta["crc32"] = self._write_rows(part, request, claim)
            meta["seconds"] = round(time.perf_counter() - started, 2)
            self._write_meta(part, meta)
            self._share(part)
            try:
                part.rename(folder)
            except OSError:
                other = read_entry(folder, request)  # of a run that was taken over, and finished after all
                if other is None:
                    raise
                return other, False
            sync(self.folder)
            return meta, True
        finally:
            remove_entry(part)

    def _write_meta(self, folder: Path, meta: Mapping[str, Any]) -> None:
        write_atomically(folder / META, (json.dumps(meta, indent=2) + "\n").encode())
        self._share(folder / META)

    def _write_rows(self, folder: Path, request: FeatureRequest, claim: "Claim") -> list[int]:
        """Write every batch as it comes; returns the CRC-32 of each file."""
        sums = [0] * len(request.layouts)
        rows = 0
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(file.open("xb")) for file in files_of(folder, request)]
            for file, layout in zip(files, request.layouts, strict=True):
                file.truncate(request.count * layout.row_bytes)  # so that others count the room as taken
            for batch in stack.enter_context(contextlib.closing(request.batches())):
                rows += len(batch[0])
                claim.progress()
                for number, (file, layout, tensor) in enumerate(zip(files, request.layouts, batch, strict=True)):
                    content = layout.to_bytes(tensor)
                    sums[number] = zlib.crc32(content, sums[number])
                    file.write(content)
        if rows != request.count:
            raise RuntimeError(f"{rows} rows of features for {request.count} images")
        for written in files_of(folder, request):
            sync(written)
            self._share(written)
        return sums

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
                if is_entry(folder):
                    used = (folder / META).stat().st_mtime
                    yield folder, used, sum(file.stat().st_size for file in folder.iterdir())

    def _remove_left_overs(self) -> None:
        """Remove what processes left that have ended: leases, claims, and what they had written or removed half."""
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another user's, or removed by another run meanwhile
                if _STALE_CLAIMS.fullmatch(path.name) or (_LEASES.fullmatch(path.name) and not self._is_live(path)):
                    path.unlink()
                match = ENTRY.fullmatch(path.name)
                if match and match["token"] and not self._in_use(match) and not self._remove(path):
                    path.rmdir()  # nothing had been written; fails unless it is empty

    def _remove(self, folder: Path, *, damaged: bool = False) -> bool:
        """Remove an entry unless another run is using or writing it; one that is `damaged` need not say its key."""
        match = ENTRY.fullmatch(folder.name)
        if match is None or not is_entry(folder, keyed=not damaged) or self._in_use(match):
            return False
        try:
            if match["token"] is None:
                removed = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}.removed")
                folder.rename(removed)
                if self._in_use(match):  # since a moment ago
                    removed.rename(folder)
                    return False
                folder = removed
            return remove_entry(folder)
        except OSError:  # another user's, or removed by another run meanwhile
            return not folder.exists()

    def _in_use(self, folder: re.Match[str]) -> bool:
        """Whether a lease of another process protects a folder: its writer's while it is written, else anyone's."""
        writer = folder["token"] if folder[0].endswith(".part") else None
        for path in self.folder.iterdir():
            lease = _LEASES.fullmatch(path.name)
            if lease is None or lease["digest"] != folder["digest"] or lease["token"] == self.token:
                continue
            if writer in (None, lease["token"]) and self._is_live(path):
                return True
        return False

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
