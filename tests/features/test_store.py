"""Features are computed once, completely, by one process, within the size limit."""

import errno
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import resource
import signal
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Queue

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from graft.data.contents import IDENTITY
from graft.data.feature_batches import Features, Layout
from graft.features.segments import ROW, FeatureRequest
from graft.features.store import MARKER, FeatureStore, NoRoom, NotOurs, Stored
from graft.system import leases
from graft.system.files import readable_size
from graft.tasks.locations import FEATURES

ROWS, WIDTH = 10, 100
SIZE = ROWS * (WIDTH * 4 + ROW.itemsize)
"""Bytes of the features requested here."""

LAYOUT = Layout(torch.float32, (WIDTH,), False)


def identities(numbers: range | list[int]) -> npt.NDArray[np.bytes_]:
    return np.array([f"image {number}".encode() for number in numbers], IDENTITY)


class Source:
    """Makes features, whose values are the numbers of their images, and counts how often and of which images."""

    def __init__(
        self,
        name: str = "a",
        pause: float = 0,
        images: range | list[int] = range(ROWS),
        lacking: int = 0,
        dataset: str = "photos",
    ) -> None:
        self.name, self.pause, self.images, self.lacking, self.dataset = name, pause, images, lacking, dataset
        self.made, self.computed = 0, list[int]()

    def batches(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[Tensor, ...]]:
        self.made += 1
        for row in rows[: len(rows) - self.lacking].tolist():
            time.sleep(self.pause)
            self.computed.append(self.images[row])
            yield (torch.full((1, WIDTH), float(self.images[row])),)

    def wanted(self) -> FeatureRequest:
        return FeatureRequest({"name": self.name}, [LAYOUT], identities(self.images), self.dataset, self.batches)  # type: ignore[arg-type]


def obtain(folder: Path, source: Source, max_bytes: int = 10 * SIZE) -> Stored:
    store = FeatureStore(folder, max_bytes)
    [stored] = store.obtain([source.wanted()])
    store.close()
    return stored


def folders(cache: Path) -> list[Path]:
    """Features in the store, half-written ones too."""
    return [path for path in (cache / FEATURES).iterdir() if path.is_dir()]


def content(stored: Stored) -> Tensor:
    features = Features("", [LAYOUT], stored.segments, stored.rows)
    [picked] = features.pick(torch.arange(len(stored.rows)))
    assert (picked == picked[:, :1]).all()
    return picked[:, 0]


def folder_of(stored: Stored) -> Path:
    """The folder of the only segment."""
    [segment] = stored.segments
    return segment.files[0].parent


def test_stored_features_are_not_recomputed(tmp_path: Path) -> None:
    source = Source()
    first, second = obtain(tmp_path, source), obtain(tmp_path, source)
    assert (source.made, first.computed, second.computed) == (1, ROWS, 0)
    assert content(second).tolist() == list(range(ROWS))
    assert [path.name for path in (tmp_path / FEATURES).iterdir() if path.is_file()] == [MARKER], "nothing is held"


def test_requests_share_the_rows_of_the_images_that_they_share(tmp_path: Path) -> None:
    first, second = Source(images=[3, 1, 4]), Source(images=[1, 5, 4, 5, 9], dataset="other photos")
    obtain(tmp_path, first)
    stored = obtain(tmp_path, second)
    assert content(stored).tolist() == [1, 5, 4, 5, 9]
    assert (second.computed, stored.computed) == ([5, 9], 3), "a repeated image has one row"
    third = Source(images=[9, 3])
    assert content(obtain(tmp_path, third)).tolist() == [9, 3]
    assert third.made == 0
    assert len(folders(tmp_path)) == 2


def test_only_the_requested_rows_are_read_and_compared_with_their_checksums(tmp_path: Path) -> None:
    folder = folder_of(obtain(tmp_path, Source()))
    flip(folder)  # row 5
    few = Source(images=[0, 1, 9])
    assert content(obtain(tmp_path, few)).tolist() == [0, 1, 9]
    assert few.made == 0
    damaged = Source(images=[4, 5, 6])
    assert content(obtain(tmp_path, damaged)).tolist() == [4, 5, 6]
    assert damaged.computed == [4, 5, 6]


def test_features_of_an_earlier_version_are_named_once_and_make_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "graft")
    obtain(tmp_path, Source("b"))
    key = {"name": "a"}
    earlier = tmp_path / FEATURES / hashlib.sha256(json.dumps([2, key], sort_keys=True).encode()).hexdigest()
    earlier.mkdir()
    (earlier / "meta.json").write_text(json.dumps({"key": key}))
    (earlier / "0.bin").write_bytes(bytes(SIZE))
    os.utime(earlier / "meta.json", (1, 1))
    store = FeatureStore(tmp_path, 10 * SIZE)
    for _ in range(2):
        store.obtain([Source("b").wanted()])
    store.close()
    assert caplog.text.count("features of an earlier version") == 1
    limit = sum(file.stat().st_size for folder in folders(tmp_path) for file in folder.iterdir())
    obtain(tmp_path, Source("c"), limit)
    assert not earlier.exists()


def shorten(folder: Path) -> None:
    os.truncate(folder / "0.bin", ROWS * WIDTH * 4 - 1)


def flip(folder: Path) -> None:
    data = bytearray((folder / "0.bin").read_bytes())
    data[SIZE // 2] ^= 1
    (folder / "0.bin").write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "0.bin").unlink()


def spoil(folder: Path) -> None:
    (folder / "meta.json").write_text('{"count": ')


def relabel(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["layouts"][0]["dtype"] = "torch.bfloat16"
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", [shorten, flip, lose, spoil, relabel])
def test_damaged_features_are_recomputed(damage, tmp_path: Path) -> None:
    source = Source()
    damage(folder_of(obtain(tmp_path, source)))
    again = obtain(tmp_path, source)
    assert again.computed
    assert content(again).tolist() == list(range(ROWS))
    assert not obtain(tmp_path, source).computed


def test_features_cut_short_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="9 rows"):
        obtain(tmp_path, Source(lacking=1))
    assert not folders(tmp_path)
    assert obtain(tmp_path, Source()).computed


def work(folder: Path, number: int, reports: "Queue[tuple[int, list[str], float]]") -> None:
    """Both processes want both; the first begins with a, the other with b."""
    sources = [Source("a", 0.05), Source("b", 0.05)][:: 1 if number else -1]
    store = FeatureStore(folder, 10 * SIZE)
    stored = store.obtain([source.wanted() for source in sources])
    reports.put((number, [source.name for source in sources if source.made], sum(map(float, content(stored[1])))))


def test_two_processes_compute_everything_once_and_each_other_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    reports: Queue[tuple[int, list[str], float]] = context.Queue()  # type: ignore[assignment]
    processes = [context.Process(target=work, args=(tmp_path, number, reports)) for number in range(2)]
    for process in processes:
        process.start()
    said = [reports.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(name for _, made, _ in said for name in made) == ["a", "b"]
    assert {total for _, _, total in said} == {sum(range(ROWS))}


def test_the_least_recently_used_features_are_evicted_unless_in_use(tmp_path: Path) -> None:
    made = {name: folder_of(obtain(tmp_path, Source(name))) for name in "abc"}
    for age, name in enumerate("bca"):  # b was used last, a first
        os.utime(made[name] / "meta.json", (1e9 - age, 1e9 - age))
    using = FeatureStore(tmp_path, 10 * SIZE)
    using.obtain([Source("a").wanted()])
    os.utime(made["a"] / "meta.json", (1, 1))
    limit = sum(file.stat().st_size for folder in folders(tmp_path) for file in folder.iterdir()) + SIZE // 2
    obtain(tmp_path, Source("d"), limit)
    assert {name for name, folder in made.items() if folder.is_dir()} == {"a", "b"}
    using.close()
    obtain(tmp_path, Source("e"), limit)
    assert {name for name, folder in made.items() if folder.is_dir()} == {"b"}


def test_features_larger_than_the_limit_are_refused(tmp_path: Path) -> None:
    using = FeatureStore(tmp_path, 10 * SIZE)
    using.obtain([Source("a").wanted()])
    refused = FeatureStore(tmp_path, 2 * SIZE)
    with pytest.raises(NoRoom, match="max_gb"):
        refused.obtain([Source("b").wanted(), Source("c", images=range(2 * ROWS)).wanted()])
    using.close()
    assert not list((tmp_path / FEATURES).glob("*.lease")), "what it got before is let go"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(OSError, match="large"):
            obtain(tmp_path, Source())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not folders(tmp_path)
    assert obtain(tmp_path, Source()).computed


def stream(folder: Path, reports: "Queue[tuple[int, int]]") -> None:
    layout, count, rows = Layout(torch.float32, (1 << 18,), False), 256, 8
    batches = lambda rows_: ((torch.ones(rows, 1 << 18),) for _ in range(count // rows))  # noqa: E731
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [stored] = FeatureStore(folder, 1 << 30).obtain(
        [FeatureRequest({}, [layout], identities(range(count)), "", batches)]
    )
    FeatureStore(folder, 1 << 30).obtain([FeatureRequest({}, [layout], identities(range(count)), "", batches)])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    reports.put((grown >> 10, stored.segments[0].files[0].stat().st_size >> 20))


def test_features_stream_to_disk_and_are_checked_in_bounded_memory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    reports: Queue[tuple[int, int]] = context.Queue()  # type: ignore[assignment]
    context.Process(target=stream, args=(tmp_path, reports)).start()
    grown, written = reports.get(timeout=60)
    assert written == 256
    assert grown < 100, "MiB; a batch is 8"


# -- what is not its own -----------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` that is not the store's, with the content of files."""
    paths = [path for path in folder.rglob("*") if FEATURES not in path.relative_to(folder).parts]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def test_other_files_in_the_cache_folder_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    for name in ("backup/photos", "flowers/daisy", "0" * 64, f"{'1' * 64}.part"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.bin").write_bytes(bytes(100 * SIZE))
    (tmp_path / ("0" * 64) / "meta.json").write_text('{"key": {}, "count": 10}')
    before = everything(tmp_path)
    obtain(tmp_path, Source("a"), 2 * SIZE)
    made = obtain(tmp_path, Source("b"), 2 * SIZE)
    assert folders(tmp_path) == [folder_of(made)], "the store keeps to its limit by its own"
    assert everything(tmp_path) == before


def test_user_files_in_the_store_are_kept(tmp_path: Path) -> None:
    old = folder_of(obtain(tmp_path, Source("a")))
    noted = folder_of(obtain(tmp_path, Source("b")))
    (noted / "notes.txt").write_text("best features so far")
    store, elsewhere = tmp_path / FEATURES, tmp_path / "elsewhere"
    copied = store / f"{'f' * 64}.{'0' * 16}"  # a digest that its key does not have
    copied.mkdir()
    for file in old.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    old.rename(elsewhere)
    old.symlink_to(elsewhere)
    (store / "photos").mkdir()
    (store / "photos" / "1.jpg").write_bytes(b"jpeg")
    obtain(tmp_path, Source("c"), int(1.5 * SIZE))
    made = folder_of(obtain(tmp_path, Source("d"), int(1.5 * SIZE)))
    assert set(folders(tmp_path)) == {made, noted, copied, old, store / "photos"}
    assert (noted / "notes.txt").exists()
    assert (elsewhere / "0.bin").exists()


def test_a_folder_with_the_store_s_name_that_graft_did_not_create_is_refused(tmp_path: Path) -> None:
    (tmp_path / FEATURES).mkdir()
    (tmp_path / FEATURES / "mine.txt").write_text("mine")
    with pytest.raises(NotOurs, match="not made by Graft"):
        obtain(tmp_path, Source())
    assert [path.name for path in (tmp_path / FEATURES).iterdir()] == ["mine.txt"]
    (tmp_path / FEATURES / "mine.txt").unlink()
    assert obtain(tmp_path, Source()).computed, "an empty one was made for it"


def test_a_damaged_entry_that_contains_a_user_file_is_not_removed(tmp_path: Path) -> None:
    folder = folder_of(obtain(tmp_path, Source()))
    flip(folder)
    (folder / "notes.txt").write_text("mine")
    again = obtain(tmp_path, Source())
    assert (again.computed, content(again).tolist()) == (ROWS, list(range(ROWS)))
    assert (folder / "notes.txt").exists()


# -- other processes, machines and users -------------------------------------------------------------------


def forked(target: Callable[..., object], *args: object) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target, args=args)
    process.start()
    return process


def compute_and_stop(folder: Path, name: str, number: int) -> None:
    """Write some rows, then be killed or stopped."""
    source = Source(name)

    def batches(rows: npt.NDArray[np.int64]) -> Iterator[tuple[Tensor, ...]]:
        for row, batch in enumerate(source.batches(rows)):
            if row == 3:
                os.kill(os.getpid(), number)
            yield batch

    FeatureStore(folder, 10 * SIZE).obtain([replace(source.wanted(), batches=batches)])  # type: ignore[arg-type]


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_killed_holder_releases_its_claim_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed = forked(compute_and_stop, tmp_path, "a", signal.SIGKILL)
    killed.join()
    [left] = folders(tmp_path)
    assert left.name.endswith(".part")
    assert content(obtain(tmp_path, Source())).tolist() == list(range(ROWS))
    assert f"process {killed.pid} on {socket.gethostname()}, since" in caplog.text
    assert "has ended" in caplog.text
    assert [path.name[:64] for path in folders(tmp_path)] == [Source().wanted().digest]
    assert not list((tmp_path / FEATURES).glob("*.part"))
    assert [path.name for path in (tmp_path / FEATURES).iterdir() if path.is_file()] == [MARKER]


def state_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_stopped_holder_is_named_and_the_wait_has_a_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "graft")
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.5)
    stopped = forked(compute_and_stop, tmp_path, "a", signal.SIGSTOP)
    wait_until(lambda: state_of(stopped.pid) == "T")
    mine = obtain(tmp_path, Source())
    assert mine.computed
    whom = f"process {stopped.pid} on {socket.gethostname()}, since"
    assert f"waiting for {whom}" in caplog.text
    assert "was not renewed for" in caplog.text
    os.kill(stopped.pid or 0, signal.SIGCONT)  # it finishes, finds the features there, and takes them
    stopped.join(timeout=60)
    assert stopped.exitcode == 0
    assert content(mine).tolist() == list(range(ROWS))
    assert [path.name for path in folders(tmp_path)] == [folder_of(mine).name]


def test_the_wait_for_a_hanging_holder_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"RENEWAL_SECONDS": 0.05, "EXPIRY_SECONDS": 0.5, "HUNG_SECONDS": 0.5}.items():
        monkeypatch.setattr(leases, name, seconds)
    hanging = forked(obtain, tmp_path, Source(pause=3600))
    wait_until(lambda: (tmp_path / FEATURES).is_dir() and list((tmp_path / FEATURES).glob("*.claim")))
    assert obtain(tmp_path, Source()).computed
    hanging.kill()
    hanging.join()


def test_the_wait_for_a_working_holder_has_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.05)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 2.0)
    working = forked(obtain, tmp_path, Source(pause=0.25))
    wait_until(lambda: (tmp_path / FEATURES).is_dir() and list((tmp_path / FEATURES).glob("*.claim")))
    assert not obtain(tmp_path, Source()).computed
    working.join()


def without_working_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system that has none."""

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(sqlite3, "connect", refuse)


def work_on(host: str, folder: Path, number: int, reports: "Queue[tuple[int, list[str], float]]") -> None:
    leases._machine = lambda: host  # type: ignore[assignment]
    work(folder, number, reports)


def test_two_hosts_compute_everything_once_where_no_lock_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_working_locks(monkeypatch)
    context = multiprocessing.get_context("fork")
    reports: Queue[tuple[int, list[str], float]] = context.Queue()  # type: ignore[assignment]
    processes = [forked(work_on, f"host{number % 2}", tmp_path, number % 2, reports) for number in range(4)]
    done = [reports.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(name for _, made, _ in done for name in made) == ["a", "b"]
    assert {total for _, _, total in done} == {sum(range(ROWS))}


def use(host: str, folder: Path, held: Event, until: Event) -> None:
    leases._machine = lambda: host  # type: ignore[assignment]
    FeatureStore(folder, 10 * SIZE).obtain([Source("a").wanted()])
    held.set()
    until.wait(60)
    os.kill(os.getpid(), signal.SIGKILL)


def test_features_in_use_on_another_host_are_kept_until_its_lease_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_working_locks(monkeypatch)
    context = multiprocessing.get_context("fork")
    held, until = context.Event(), context.Event()
    far = forked(use, "far", tmp_path, held, until)
    assert held.wait(60)
    with pytest.raises(NoRoom):
        obtain(tmp_path, Source("b"), int(1.5 * SIZE))
    until.set()
    far.join()
    with pytest.raises(NoRoom):  # that it has ended cannot be known here
        obtain(tmp_path, Source("b"), int(1.5 * SIZE))
    [lease] = (tmp_path / FEATURES).glob("*.lease")
    long_ago = time.time() - 2 * leases.ABANDONED_SECONDS
    os.utime(lease, (long_ago, long_ago))
    kept = folder_of(obtain(tmp_path, Source("b"), int(1.5 * SIZE)))
    assert folders(tmp_path) == [kept]


def test_a_claim_with_a_new_holder_is_not_cleared_with_the_old_one(tmp_path: Path) -> None:
    old = leases.Lease(tmp_path / "claim")
    watch = leases.Watch(tmp_path / "claim")
    watch.read()
    old.release()
    new = leases.Lease(tmp_path / "claim")
    watch.clear()
    assert (tmp_path / "claim").read_bytes() == new.content
    old.release()
    assert (tmp_path / "claim").exists(), "nor is it released by the one before"
    new.release()
    assert not list(tmp_path.iterdir())


def as_nobody(folder: Path, name: str, reports: "Queue[object]") -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    os.umask(0o077)
    try:
        reports.put(obtain(folder, Source(name)).computed > 0)
    except OSError as error:
        reports.put(repr(error))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("mode", "expected"), [(0o777, [False, True]), (0o1777, [False, True]), (0o755, ["Perm"] * 2)])
def test_a_second_user_shares_the_cache(mode: int, expected: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    reports: Queue[object] = multiprocessing.get_context("fork").Queue()  # type: ignore[assignment]
    before = os.umask(0o077)  # even so
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        try:
            Path(folder).chmod(0o755)
            cache = Path(folder) / "cache"
            cache.mkdir()
            cache.chmod(mode)
            obtain(cache, Source("a"))
            for name, computed in zip("ab", expected, strict=True):
                forked(as_nobody, cache, name, reports).join()
                got = reports.get(timeout=60)
                assert got == computed or (computed == "Perm" and str(got).startswith("PermissionError"))
            assert (obtain(cache, Source("b")).computed > 0) is (mode == 0o755), (
                "and the first uses what the second made"
            )
            if mode == 0o777:
                made = folder_of(obtain(cache, Source("c"), int(1.5 * SIZE)))
                assert folders(cache) == [made], "each may make room"
        finally:
            os.umask(before)


def test_sizes_are_formatted_with_units() -> None:
    assert [readable_size(size) for size in (12, 3_900_000, 2e10, 5e12)] == [
        "12 bytes",
        "3.9 MB",
        "20.0 GB",
        "5000.0 GB",
    ]
