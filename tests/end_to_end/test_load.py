"""Many parallel runs, long runs, and data sets of many classes."""

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import QUICK, started
from PIL import Image

import graft

OWN_SET = """
from graft.data.layout import read_class_folders
from graft.data.sources.base import Download, Source
DOWNLOAD = Download("{url}/photos.zip", "photos")
def load(root, *, seed, test_fraction, split_seed):
    return Source(("a", "b"), read_class_folders(root), test_fraction=test_fraction)
"""


@pytest.mark.slow
def test_eight_runs_at_once_share_one_download_and_one_cache(
    http_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = np.random.RandomState(0)
    for name in "ab":
        (tmp_path / "origin" / "photos" / name).mkdir(parents=True)
        for number in range(20):
            picture = Image.fromarray(chance.randint(0, 256, (32, 32, 3), dtype=np.uint8))
            picture.save(tmp_path / "origin" / "photos" / name / f"{number}.png")
    shutil.make_archive(str(http_server.folder / "photos"), "zip", tmp_path / "origin")
    (tmp_path / "own_sets").mkdir()
    (tmp_path / "own_sets" / "photos.py").write_text(OWN_SET.format(url=http_server.url))
    monkeypatch.syspath_prepend(tmp_path)
    words = (
        "model=vgg_mini", "model.weights=bundled", "data=target", "data._target_=own_sets.photos.load", "augment=none",
        f"data.root={tmp_path}/data/photos", f"paths.cache={tmp_path}/cache", "strategy=feature_extract",
        "cache=features", "trainer.max_epochs=2", "data.batch_size=4", "review=none", "logger.tensorboard=false",
    )  # fmt: skip
    children = [started(tmp_path / f"run{number}", *words) for number in range(8)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 8
    runs = [graft.FinishedRun(tmp_path / f"run{number}") for number in range(8)]
    assert [path for path, _ in http_server.requests] == ["/photos.zip"]
    assert all(run.metrics == runs[0].metrics for run in runs)
    computed = [entry["part"] for run in runs for entry in run.summary["cache"]["features"] if entry["computed"]]
    assert sorted(computed) == ["test", "train", "val"], "each is computed by one of them"
    left = [path.name for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")]
    assert left == ["photos"]


def resources_in_use() -> tuple[int, int, float]:
    """Open files, threads, and resident memory in MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="what a process holds is read from /proc")
def test_memory_does_not_grow_in_ten_thousand_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graft.learning.checkpoint_writing import ResumePoint

    seen: dict[int, tuple[int, int, float]] = {}
    on_train_batch_end = ResumePoint.on_train_batch_end

    def look(self: ResumePoint, trainer: Any, *others: Any) -> None:
        on_train_batch_end(self, trainer, *others)
        if trainer.global_step % 2000 == 0:
            seen[trainer.global_step] = resources_in_use()

    monkeypatch.setattr(ResumePoint, "on_train_batch_end", look)
    graft.train(
        "model=vgg_custom", "model.table=[4,M]", "model.classifier=pooled", "model.input_size=8", "data=digits",
        "strategy=scratch", "augment=none", "data.batch_size=16", "trainer.max_epochs=1000", "trainer.max_steps=10001",
        "trainer.log_every_n_steps=100", "callbacks.progress=none", "optimizer.lr=0.01",
        "callbacks.checkpoint_every_n_steps=500", folder=tmp_path, echo=False,
    )  # fmt: skip
    print(seen)
    assert len(seen) == 5
    files, threads, memory = seen[2000]
    assert seen[10000][0] <= files + 1
    assert seen[10000][1] <= threads
    assert seen[10000][2] < memory + 30


@pytest.mark.slow
def test_ten_thousand_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graft.learning.module import TransferModule

    monitored: set[str] = set()
    log_dict = TransferModule.log_dict

    def note(self: TransferModule, metrics: Any, **options: Any) -> None:
        monitored.update(metrics)
        log_dict(self, metrics, **options)

    monkeypatch.setattr(TransferModule, "log_dict", note)
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    for number in range(10_000):
        for part in ("train", "test"):
            folder = tmp_path / "photos" / part / f"class {number}"
            folder.mkdir(parents=True)
            (folder / "a.png").symlink_to(tmp_path / "a.png")
    words = (word for word in QUICK if not word.startswith("data="))
    run = graft.train(
        *words, "data=folder", f"data.root={tmp_path}/photos", "data.val_fraction=0", "logger=[tensorboard,csv]",
        folder=tmp_path / "run", echo=False,
    )  # fmt: skip
    assert len(run.classes) == 10_000
    assert sum(name.startswith("test/acc/") for name in run.metrics) == 10_000
    assert len(monitored) == 6, "Lightning takes milliseconds for each figure that callbacks may monitor"
    assert len(json.dumps(run.summary)) < 2_000_000
