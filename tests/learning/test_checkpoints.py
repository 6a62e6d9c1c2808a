"""Damaged and missing checkpoints are detected, named and replaced by the previous one."""

import os
import random
from pathlib import Path

import pytest
import torch

from graft.errors import TrainingError, WeightsError
from graft.learning.checkpoint_writing import AtomicCheckpointIO
from graft.learning.checkpoints import read_checkpoint, replace_damaged_checkpoint
from graft.models.weights.reading import read_file
from graft.system.files import damage_in


def content(epoch: int = 0, size: int = 50) -> dict[str, object]:
    weights = torch.arange(size, dtype=torch.float32)
    return {"epoch": epoch, "state_dict": {"network.a": weights, "network.b": weights + 1}, "graft": {"classes": ["a"]}}


def save(file: Path, epoch: int = 0) -> Path:
    AtomicCheckpointIO().save_checkpoint(content(epoch), file)
    return file


def flip(file: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    spoiled = bytearray(file.read_bytes())
    spoiled[bit // 8] ^= 1 << bit % 8
    file.write_bytes(spoiled)


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def test_a_flipped_bit_is_detected_or_changes_nothing(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.ckpt").read_bytes()
    file = tmp_path / "flipped.ckpt"
    noticed = 0
    for bit in random.Random(0).sample(range(8 * len(whole)), 400):
        file.write_bytes(whole)
        flip(file, bit)
        os.utime(file, (bit, bit))  # a file is looked at again when it has changed
        try:
            read = read_checkpoint(file)
        except TrainingError as error:
            assert "flipped.ckpt: " in str(error)  # noqa: PT017
            noticed += 1
        else:  # padding between the records, a date
            assert same(read, content())
    assert noticed > 40


def test_a_truncated_checkpoint_is_detected(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.ckpt").read_bytes()
    file = tmp_path / "cut.ckpt"
    save(tmp_path / "last.ckpt")
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        file.write_bytes(whole[:length])
        os.utime(file, (length, length))
        with pytest.raises(TrainingError, match=r"cut\.ckpt: damaged \(.+\)\.\nNext to it there is last\.ckpt\."):
            read_checkpoint(file)


def test_a_checkpoint_written_by_torch_save_loads(tmp_path: Path) -> None:
    torch.save(content(3), tmp_path / "plain.ckpt")
    assert read_checkpoint(tmp_path / "plain.ckpt")["epoch"] == 3
    assert torch.load(save(tmp_path / "last.ckpt", 4), weights_only=True)["epoch"] == 4


def test_damaged_initial_weights_are_detected(tmp_path: Path) -> None:
    file = save(tmp_path / "best.ckpt")
    weights = torch.arange(50, dtype=torch.float32).numpy().tobytes()
    flip(file, 8 * (file.read_bytes().index(weights) + 100))
    with pytest.raises(WeightsError, match=r"best\.ckpt: .*the checksum of \S+ is wrong"):
        read_file(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with a checkpoint of epoch 2, and the one before it."""
    (tmp_path / "checkpoints").mkdir()
    for epoch in range(3):
        save(tmp_path / "checkpoints" / "last.ckpt", epoch)
    assert {file.name for file in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    return tmp_path


def test_an_intact_checkpoint_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    assert replace_damaged_checkpoint(folder) is None
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["epoch"] == 2
    assert replace_damaged_checkpoint(tmp_path / "empty") is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "killed between two renames"])
def test_the_previous_checkpoint_replaces_a_damaged_one(damage: str, folder: Path) -> None:
    last = folder / "checkpoints" / "last.ckpt"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:-30])
    elif damage == "flipped":
        flip(last, 8 * (last.read_bytes().index(b"PK", 1) - 40))
        assert damage_in(last) is not None
    else:
        last.unlink()
    note = replace_damaged_checkpoint(folder)
    assert note is not None
    assert note.startswith("last.ckpt was " + ("missing" if damage.startswith("killed") else "damaged ("))
    assert read_checkpoint(last)["epoch"] == 1
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]
    assert replace_damaged_checkpoint(folder) is None


def test_with_both_checkpoints_damaged_the_run_does_not_restart_unasked(folder: Path) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / "checkpoints" / name).write_bytes(b"PK")
    with pytest.raises(TrainingError, match=r"(?s)last\.ckpt is damaged .*previous\.ckpt.* is damaged .*beginning"):
        replace_damaged_checkpoint(folder)


def test_a_full_disk_is_reported_and_keeps_the_previous_checkpoint(small_disk: Path) -> None:
    file = save(small_disk / "last.ckpt", 1)
    with pytest.raises(TrainingError, match=r"last\.ckpt: the checkpoint cannot be written \(No space left on device"):
        AtomicCheckpointIO().save_checkpoint(content(2, size=20_000_000), file)
    assert [path.name for path in small_disk.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(file)["epoch"] == 1
