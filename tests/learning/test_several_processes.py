"""Training in several processes of one machine."""

from pathlib import Path

import pytest
import torch
from commands import ROOT, SMALL, command, succeeded, train, weights

from graft.review.record import read_record

PROCESSES = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")

WITHOUT_NORM = (
    *SMALL,
    "model.batch_norm=false",
    "model.dropout=0",
    "augment=none",
    "data.num_workers=0",
)
"""Overrides of a network whose output for an image does not depend on the other images of the batch."""


def test_two_processes_that_unfreeze_gradually_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    short = ("trainer.limit_train_batches=4", "trainer.limit_val_batches=2", "trainer.baseline=false")
    first = succeeded(train(tmp_path / "first", *WITHOUT_NORM, *short, "trainer.max_epochs=1", "trainer.test=false"))
    common = (
        *WITHOUT_NORM,
        *short,
        "strategy=gradual",
        "cache=none",
        f"model.weights={first.folder / 'checkpoints' / 'best.ckpt'}",
        "trainer.max_epochs=3",
        "optimizer.lr=0.02",
    )
    one = succeeded(train(tmp_path / "runs" / "one", *common, "data.batch_size=32"))
    two = succeeded(train(tmp_path / "runs" / "two", *common, *PROCESSES, "data.batch_size=16"))
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"one", "two"}, "one run folder each"
    assert {path.name for path in two.folder.iterdir()} == {path.name for path in one.folder.iterdir()}
    for name in ("val/loss", "val/acc", "test/loss"):
        assert two.summary["metrics"][name] == pytest.approx(one.summary["metrics"][name], abs=1e-4)
    record, expected_record = read_record(two.folder), read_record(one.folder)
    assert record is not None
    assert expected_record is not None
    assert record.digests.tolist() == expected_record.digests.tolist(), "each test image once, of all processes"
    assert record.images == sum(two.summary["data"]["counts"]["test"].values())
    before, expected, got = weights(first), weights(one), weights(two)
    assert not torch.equal(before["network.features.0.weight"], got["network.features.0.weight"]), "unfrozen in epoch 3"
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=1e-4)


def test_a_sweep_of_multi_process_runs_writes_to_its_folders_only(tmp_path: Path) -> None:
    run = command(
        tmp_path / "run", str(ROOT / "train.py"), "-m", *WITHOUT_NORM, *PROCESSES, "trainer.max_epochs=1",
        "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "seed=0",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    succeeded(run)
    folders = {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir() and path.name[0] != "."}
    assert folders == {"0"}
    assert {path.name for path in tmp_path.iterdir()} == {"sweep"}
