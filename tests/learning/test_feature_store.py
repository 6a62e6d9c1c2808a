"""Features are computed once, whole, by one process, and never more of them are kept than allowed."""

import json
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest
import torch
from torch import Tensor

from graft.data.features import Features, Layout
from graft.learning.feature_store import FeatureStore, NoRoom, Stored, Wanted, in_words

ROWS, WIDTH = 10, 100
SIZE = ROWS * WIDTH * 4
"""Bytes of the features wanted here."""


class Source:
    """Makes features and counts how often."""

    def __init__(self, name: str = "a", pause: float = 0, rows: int = ROWS) -> None:
        self.name, self.pause, self.rows, self.made = name, pause, rows, 0

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        self.made += 1
        for row in range(self.rows):
            time.sleep(self.pause)
            yield (torch.full((1, WIDTH), float(row)),)

    def wanted(self) -> Wanted:
        return Wanted({"name": self.name}, [Layout(torch.float32, (WIDTH,), False)], ROWS, self.batches)  # type: ignore[arg-type]


def obtain(folder: Path, source: Source, max_bytes: int = 10 * SIZE) -> Stored:
    store = FeatureStore(folder, max_bytes)
    [stored] = store.obtain([source.wanted()])
    store.close()
    return stored


def content(stored: Stored) -> Tensor:
    features = Features("", stored.files, [Layout(torch.float32, (WIDTH,), False)], ROWS)
    return features.pick(torch.arange(ROWS))[0][:, 0]


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    source = Source()
    first, second = obtain(tmp_path, source), obtain(tmp_path, source)
    assert (source.made, first.computed, second.computed) == (1, True, False)
    assert content(second).tolist() == list(range(ROWS))
    assert second.seconds == first.seconds
    assert not list(tmp_path.glob("*.part"))


def shorten(folder: Path) -> None:
    os.truncate(folder / "0.bin", SIZE - 1)


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
def test_damaged_features_are_computed_anew(damage, tmp_path: Path) -> None:
    source = Source()
    damage(obtain(tmp_path, source).files[0].parent)
    again = obtain(tmp_path, source)
    assert again.computed
    assert content(again).tolist() == list(range(ROWS))
    assert not obtain(tmp_path, source).computed


def test_features_cut_short_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="9 rows"):
        obtain(tmp_path, Source(rows=ROWS - 1))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
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


def test_what_a_killed_process_left_is_begun_anew(tmp_path: Path) -> None:
    wanted = Source().wanted()
    left = tmp_path / f"{wanted.digest}.part"
    left.mkdir(parents=True)
    (left / "0.bin").write_bytes(b"half")
    assert content(obtain(tmp_path, Source())).tolist() == list(range(ROWS))
    assert not left.exists()


def test_the_longest_unused_makes_room_but_nothing_that_is_in_use(tmp_path: Path) -> None:
    made = {name: obtain(tmp_path, Source(name)).files[0].parent for name in "abc"}
    for age, name in enumerate("bca"):  # b was used last, a first
        os.utime(made[name] / "meta.json", (1e9 - age, 1e9 - age))
    using = FeatureStore(tmp_path, 10 * SIZE)
    using.obtain([Source("a").wanted()])
    os.utime(made["a"] / "meta.json", (1, 1))
    limit = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) + SIZE // 2
    obtain(tmp_path, Source("d"), limit)
    assert {name for name, folder in made.items() if folder.is_dir()} == {"a", "b"}
    using.close()
    obtain(tmp_path, Source("e"), limit)
    assert {name for name, folder in made.items() if folder.is_dir()} == {"b"}


def test_features_that_find_no_room_are_refused(tmp_path: Path) -> None:
    using = FeatureStore(tmp_path, 10 * SIZE)
    using.obtain([Source("a").wanted()])
    with pytest.raises(NoRoom, match="max_gb"):
        obtain(tmp_path, Source("b"), 2 * SIZE)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(OSError, match="large"):
            obtain(tmp_path, Source())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert obtain(tmp_path, Source()).computed


def stream(folder: Path, reports: "Queue[tuple[int, int]]") -> None:
    layout, count, rows = Layout(torch.float32, (1 << 18,), False), 256, 8
    batches = lambda: ((torch.ones(rows, 1 << 18),) for _ in range(count // rows))  # noqa: E731
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [stored] = FeatureStore(folder, 1 << 30).obtain([Wanted({}, [layout], count, batches)])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    reports.put((grown >> 10, stored.files[0].stat().st_size >> 20))


def test_features_stream_to_disk_and_are_checked_in_bounded_memory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    reports: Queue[tuple[int, int]] = context.Queue()  # type: ignore[assignment]
    context.Process(target=stream, args=(tmp_path, reports)).start()
    grown, written = reports.get(timeout=60)
    assert written == 256
    assert grown < 100, "MiB; a batch is 8"


def test_sizes_are_told_in_words() -> None:
    assert [in_words(size) for size in (12, 3_900_000, 2e10, 5e12)] == ["12 bytes", "3.9 MB", "20.0 GB", "5000.0 GB"]
