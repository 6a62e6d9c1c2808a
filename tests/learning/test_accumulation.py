"""Gradient accumulation: every optimizer step uses the mean gradient of its batches."""

from pathlib import Path

import pytest
import torch
from commands import TINY

import graft

TWO_BATCHES = (
    *TINY, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.baseline=false", "trainer.test=false",
    "optimizer=sgd", "scheduler=none", "logger.tensorboard=false", "callbacks.progress=none",
)  # fmt: skip


def weights_after_two_batches(folder: Path, accumulate: int) -> dict[str, torch.Tensor]:
    overrides = (*TWO_BATCHES, f"trainer.accumulate_grad_batches={accumulate}")
    run = graft.train(*overrides, folder=folder / str(accumulate), echo=False)
    return torch.load(run.checkpoint, weights_only=True)["state_dict"]


@pytest.mark.parametrize("accumulate", [3, 4])
def test_the_last_window_of_an_epoch_is_divided_by_its_own_length(accumulate: int, tmp_path: Path) -> None:
    whole = weights_after_two_batches(tmp_path, 2)
    cut = weights_after_two_batches(tmp_path, accumulate)
    for name, expected in whole.items():
        torch.testing.assert_close(cut[name], expected, rtol=1e-5, atol=1e-6, msg=name)
