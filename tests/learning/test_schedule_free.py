"""Schedule-free optimizers: averaged weights are validated, saved and tested; the trained ones are not disturbed."""

from pathlib import Path

import pytest
import torch
from commands import SMALL

import graft
from graft.api import FinishedRun
from graft.errors import ConfigError

pytest.importorskip("schedulefree")

COMMON = (
    *SMALL, "data=digits", "model.batch_norm=false", "optimizer=schedule_free", "optimizer.lr=0.01", "augment=none",
    "callbacks.checkpoint=last", "callbacks.progress=none", "trainer.max_epochs=2", "trainer.limit_train_batches=4",
    "trainer.baseline=false", "data.num_workers=0", "review=none", "data.val_fraction=0",
)  # fmt: skip


def read(run: FinishedRun, name: str) -> dict:
    return torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_averaged_weights_are_validated_saved_and_tested_while_training_continues_with_its_own(tmp_path: Path) -> None:
    run = graft.train(*COMMON, folder=tmp_path / "run", echo=False)
    best, last = read(run, "best"), read(run, "last")
    averaged, trained = last["state_dict"], last["current_model_state"]
    assert any(not torch.equal(averaged[key], trained[key]) for key in averaged)
    assert all(torch.equal(averaged[key], best["state_dict"][key]) for key in averaged)
    assert run.metrics["test/loss"] == pytest.approx(run.metrics["val/loss"], rel=1e-6), "both of the test images"

    unwatched = graft.train(*COMMON, "trainer.limit_val_batches=0", folder=tmp_path / "unwatched", echo=False)
    others = read(unwatched, "last")["current_model_state"]
    assert all(torch.equal(trained[key], others[key]) for key in trained), "validations change nothing"


@pytest.mark.parametrize("words", ["scheduler=cosine", "callbacks.ema=0.9"])
def test_a_schedule_or_a_second_average_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=words.partition("=")[0].partition(".")[0]):
        graft.train(*COMMON, words, echo=False)
