"""trainer.limit_*_batches evaluate a sample of the whole set."""

from pathlib import Path

import numpy as np
from commands import TINY

import graft
from graft.review.record import read_record


def test_limited_validation_and_test_include_all_classes(tmp_path: Path) -> None:
    overrides = (
        *TINY, "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1", "data.batch_size=32", "trainer.baseline=false", "review.record=10",
        "callbacks.progress=none",
    )  # fmt: skip
    run = graft.train(*overrides, folder=tmp_path, echo=False)
    record = read_record(tmp_path)
    assert record is not None
    assert record.images == 64, "one batch of the test, twice the size of a training batch"
    assert np.count_nonzero(record.totals) == len(run.classes) == 10
