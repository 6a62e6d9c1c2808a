"""A small BatchNorm VGG that several files train further."""

from pathlib import Path

import pytest
from commands import SMALL, Finished, succeeded, train


@pytest.fixture(scope="session")
def pretrained_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of a small BatchNorm VGG with three linear layers that has learned some digits."""
    limits = ("trainer.max_epochs=1", "trainer.limit_test_batches=2", "data.num_workers=0")
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    return succeeded(train(folder, *SMALL, "model.batch_norm=true", *limits))


@pytest.fixture
def pretrained(pretrained_run: Finished) -> Path:
    """The checkpoint of `pretrained_run`."""
    return pretrained_run.folder / "checkpoints" / "best.ckpt"
