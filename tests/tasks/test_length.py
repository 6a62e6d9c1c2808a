"""A run of any length ends with a best checkpoint or is refused before it begins."""

from pathlib import Path

import pytest
from commands import TINY
from one_training_step import composed

import graft
from graft.errors import ConfigError
from graft.tasks.checks import settle

WORDS = (*TINY, "trainer.baseline=false", "logger.tensorboard=false", "callbacks.progress=none")
LAST = ("callbacks.checkpoint=last",)


@pytest.mark.parametrize(
    "words",
    [
        ("trainer.max_steps=3",),
        ("trainer.max_steps=8", "trainer.max_epochs=-1"),
        ("trainer.max_steps=3", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4"),
        ("trainer.max_steps=3", "callbacks.early_stopping=2", "scheduler=plateau"),
    ],
    ids=" ".join,
)
def test_the_last_step_is_always_validated(words: tuple[str, ...], tmp_path: Path) -> None:
    run = graft.train(*WORDS, *words, folder=tmp_path, echo=False)
    last = int(words[0].partition("=")[2])
    assert run.curve("val/acc")[0][-1] == last
    assert run.checkpoint.is_file()
    assert run.metrics["val/acc"] == max(run.curve("val/acc")[1])


def test_without_validation_the_last_weights_are_kept_with_checkpoint_last(tmp_path: Path) -> None:
    words = ("trainer.limit_val_batches=0", "callbacks.checkpoint=last", "trainer.max_epochs=2")
    run = graft.train(*WORDS, *words, folder=tmp_path, echo=False)
    assert run.checkpoint.is_file()
    assert "val/acc" not in run.metrics


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trainer.limit_val_batches=0",), r"limit_val_batches=0 and callbacks\.checkpoint=best disagree"),
        (("trainer.limit_val_batches=0.0", *LAST, "callbacks.early_stopping=1"), "early_stopping=1"),
        (("trainer.limit_val_batches=0", *LAST, "scheduler=plateau"), r"scheduler\.monitor=val/loss"),
        (("trainer.limit_val_batches=0", *LAST, "search.pruner=median"), r"search\.pruner=median"),
        (("trainer.limit_train_batches=0",), "limit_train_batches=0: must be at least 1"),
        (("trainer.max_steps=0",), r"max_steps=0: nothing to train"),
        (("trainer.max_epochs=0", "trainer.max_steps=5"), r"max_epochs=0: nothing to train"),
        (("trainer.max_epochs=-1",), r"would never end"),
    ],
)  # fmt: skip
def test_a_training_that_cannot_end_with_a_checkpoint_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settle(composed(*WORDS, *words))
