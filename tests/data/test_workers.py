"""Worker processes pass on batches even if /dev/shm is full, and every wait for one has a limit."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from graft.data import parcels
from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.datasets import Batch
from graft.data.feature_batches import FeatureBatch
from graft.data.images import ImageSet
from graft.data.loader import ResumableLoader
from graft.data.parcels import Parcel, pack
from graft.data.preprocessing import Preprocessing
from graft.data.sampler import EpochSampler
from graft.data.splits import Splits
from graft.data.workers import explaining_worker_failures, failure_of
from graft.errors import DataError

SIZE, COUNT = 32, 60


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    paths = [tmp_path / f"{i}.png" for i in range(COUNT)]
    for i, path in enumerate(paths):
        Image.new("RGB", (SIZE, SIZE), (i, 2 * i, 3 * i)).save(path)
    return ImageSet([path.name for path in paths], np.arange(COUNT) % 2, paths=paths)


def loader(images: ImageSet, timeout: float | None = 60.0, **options: Any) -> ResumableLoader:
    splits = Splits(("a", "b"), images, images.select(range(COUNT)), images.select(range(COUNT)))
    preprocessing = Preprocessing(input_size=SIZE, resize_size=SIZE)
    settings: dict[str, Any] = {"batch_size": 4, "num_workers": 2, "resident_gb": 0} | options
    augment = Augment(random_resized_crop={})
    return ImageDataModule(splits, preprocessing, augment, timeout=timeout, **settings).train_dataloader()


def signalled(batches: Iterator[Any], number: signal.Signals) -> list[int]:
    """Send a signal to the worker processes; returns their ids."""
    pids = [child.pid for child in multiprocessing.active_children() if child.daemon and child.pid]
    for pid in pids:
        os.kill(pid, number)
    return pids


def test_stopped_workers_end_the_wait_and_are_named(images: ImageSet) -> None:
    batches = iter(loader(images, timeout=1.0))
    next(batches)
    pids = signalled(batches, signal.SIGSTOP)
    with pytest.raises(DataError) as raised:
        list(batches)
    assert str(raised.value).startswith("data.timeout=1: the worker processes sent no batch for 1 seconds: worker")
    for pid in pids:
        assert f"worker process {pid} is stopped (SIGSTOP; kill -CONT {pid} continues it)" in str(raised.value)
    assert not [child for child in multiprocessing.active_children() if child.pid in pids], "they would hold up the end"


def test_workers_that_are_stopped_between_two_epochs_end_the_wait_too(images: ImageSet) -> None:
    batches = loader(images, timeout=1.0)
    pids: list[int] = []
    for _ in batches:  # the next epoch starts with the same processes
        pids = pids or [child.pid for child in multiprocessing.active_children() if child.daemon and child.pid]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"data\.timeout=1: the worker processes sent no batch .* is stopped"):
        list(batches)
    assert not [child for child in multiprocessing.active_children() if child.pid in pids]


def test_a_killed_worker_is_reported_with_a_clear_error(images: ImageSet) -> None:
    batches = iter(loader(images))
    next(batches)
    time.sleep(0.1)

    @explaining_worker_failures()  # torch's handler may break in anywhere
    def killed() -> None:
        signalled(batches, signal.SIGKILL)
        list(batches)

    with pytest.raises(DataError, match=r"worker process [\d, ]+, which loads images, was killed by SIGKILL, as the"):
        killed()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("is killed by signal: Killed. ", "was killed by SIGKILL, as the system does when memory runs out"),
        ("is killed by signal: Bus error. It is possible that", "was killed by SIGBUS, as when memory runs out. /dev"),
        ("is killed by signal: Segmentation fault. ", "was killed by SIGSEGV: a library crashed in it"),
        ("exited unexpectedly with exit code 3. ", "ended unexpectedly"),
    ],
)
def test_torchs_worker_errors_are_recognised(message: str, reason: str) -> None:
    assert f"worker process 7, which loads images, {reason}" in str(
        failure_of(RuntimeError(f"DataLoader worker (pid 7) {message}"))
    )
    assert failure_of(RuntimeError("CUDA error")) is None


class Hanging(Dataset[Any]):
    """Opens an image and does not come back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 8

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        with self.path.open("rb"):
            time.sleep(600)


def test_the_file_that_a_worker_hangs_on_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "on\x1b[31m a dead server.jpg"
    file.touch()
    sampler = EpochSampler(8, seed=0, shuffle=False)
    hanging = ResumableLoader(Hanging(file), batch_size=4, sampler=sampler, num_workers=1, patience=1.0)
    with pytest.raises(DataError) as raised:
        list(hanging)
    assert "a dead server.jpg" in str(raised.value)
    assert str(raised.value).replace("\n", "").isprintable()
    assert "waiting for a batch: worker process" in caplog.text


def test_a_slow_batch_within_the_limit_is_waited_for(images: ImageSet) -> None:
    batches = iter(loader(images, timeout=5.0))
    next(batches)
    pids = signalled(batches, signal.SIGSTOP)
    multiprocessing.get_context("fork").Process(target=_continue_later, args=(pids,)).start()
    assert sum(len(batch.labels) for batch in batches) == COUNT - 4


def _continue_later(pids: list[int]) -> None:
    time.sleep(1)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_batches_arrive_where_no_socket_can_be_created(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A path of more than 107 characters is too long for one; a folder without inodes is much the same."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(folder))  # type: ignore[attr-defined]
    assert sum(len(batch.labels) for batch in loader(images)) == COUNT
    assert "send batches through a pipe, which is slower: AF_UNIX path too long" in caplog.text


class Values(Dataset[Any]):
    def __init__(self, values: Sequence[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Any:
        return self.values[key[1]]


BATCHES = [
    Batch(
        torch.arange(96, dtype=torch.uint8).view(2, 4, 4, 3).permute(0, 3, 1, 2), torch.tensor([1, -1]), torch.zeros(2)
    ),
    FeatureBatch(
        (torch.randn(3, 5).bfloat16(), torch.randn(3, 2, 4).transpose(1, 2)), torch.ones(3), torch.ones(3), "x"
    ),
    FeatureBatch((torch.randn(7, 6)[:, ::2], torch.zeros(0, 4)), torch.ones(1).bool(), torch.tensor(5), "gaps"),
]


@pytest.mark.parametrize("fallback", [False, True])
def test_a_batch_arrives_unchanged(fallback: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fallback:
        monkeypatch.setattr(parcels, "_unavailable", "TMPDIR is full")
    sampler = EpochSampler(len(BATCHES), seed=0, shuffle=False)
    arrived = list(
        ResumableLoader(
            Values(BATCHES), batch_size=1, sampler=sampler, num_workers=1, collate_fn=lambda one: pack(one[0])
        )
    )
    for sent, got in zip(BATCHES, arrived, strict=True):
        assert type(sent) is type(got)
        flat = [
            [each for value in batch for each in (value if isinstance(value, tuple) else (value,))]
            for batch in (sent, got)
        ]
        for one, other in zip(*flat, strict=True):
            if isinstance(one, str):
                assert one == other
            else:
                assert torch.equal(one, other)
                assert one.dtype == other.dtype
    assert arrived[0].images.is_contiguous(memory_format=torch.channels_last)


def test_a_parcel_is_pinned_by_the_thread_that_pins_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU, where nothing can be pinned: a copy stands for that."""
    from torch.utils.data._utils.pin_memory import pin_memory

    monkeypatch.setattr(parcels, "get_worker_info", lambda: "a worker's")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 0)
    pinned = pin_memory(pack(BATCHES[0]))
    assert isinstance(pinned, Batch)
    assert torch.equal(pinned.images, BATCHES[0].images)
    assert pinned.images.is_contiguous(memory_format=torch.channels_last)


def test_in_the_main_process_nothing_is_packed() -> None:
    assert pack(BATCHES[0]) is BATCHES[0]
    assert not isinstance(pack(BATCHES[1]), Parcel)
