"""`trainer.max_time`: training ends within the budget, with the schedule at its end; resume counts the time used."""

from pathlib import Path
from typing import Any

import pytest
from commands import TINY, succeeded, train

import graft
from graft.config.duration import seconds_of
from graft.errors import ConfigError
from graft.learning.callbacks import time_budget
from graft.learning.callbacks.time_budget import TimeBudget

WORDS = (*TINY, "logger=none", "trainer.baseline=false", "trainer.accelerator=cpu", "optimizer.lr=0.05")


class Clock:
    """A second passes at each call."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def fitted(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str, **arguments: Any) -> tuple[Any, TimeBudget]:
    """The trainer after its training, by a clock of which the test knows the speed."""
    monkeypatch.setattr(time_budget, "clock", Clock())
    module, data, trainer = graft.build(*WORDS, *words, folder=folder)
    trainer.fit(module, datamodule=data, **arguments)
    (budget,) = (callback for callback in trainer.callbacks if isinstance(callback, TimeBudget))
    return trainer, budget


@pytest.mark.parametrize("scheduler", ["cosine", "onecycle", "step"])
def test_the_learning_rate_is_at_its_end_when_the_time_is_over(
    scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"scheduler={scheduler}", "trainer.max_epochs=50", "trainer.max_time=00:01:00")
    trainer, budget = fitted(tmp_path / "run", monkeypatch, *words)
    assert budget.ended
    assert trainer.global_step < 60 < 300
    assert budget.elapsed() - 3 <= 60, "the last validation is within the budget"
    assert budget.reserve() > 0
    config = trainer.lr_scheduler_configs[0]
    total = 300 if config.interval == "step" else 50
    assert config.scheduler.last_epoch >= 0.93 * total
    assert trainer.optimizers[0].param_groups[-1]["lr"] < 0.05 * 0.2
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file(), "the last epoch is validated, though cut"


def test_an_ample_budget_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []
    for words in ((), ("trainer.max_time=10:00:00",)):
        run = tmp_path / f"run{len(words)}"
        if words:
            trainer, budget = fitted(run, monkeypatch, "trainer.max_epochs=3", *words)
            assert budget.ended is None
        else:
            module, data, trainer = graft.build(*WORDS, "trainer.max_epochs=3", folder=run)
            trainer.fit(module, datamodule=data)
        rates.append(([group["lr"] for group in trainer.optimizers[0].param_groups], trainer.global_step,
                      [parameter.sum().item() for parameter in trainer.lightning_module.parameters()]))  # fmt: skip
    assert rates[0] == rates[1]


def test_a_resumed_run_continues_the_time_and_the_command_tests_and_says_so(tmp_path: Path) -> None:
    words = (*TINY, "logger=none", "trainer.max_epochs=2")
    first = succeeded(train(tmp_path / "run", *words, "trainer.max_time=01:00:00"))
    assert not any("max_time" in note for note in first.summary["notes"])
    again = succeeded(train(tmp_path / "run", *words[:-1], "trainer.max_epochs=5000", "trainer.max_time=00:00:04",
                            "resume=auto"))  # fmt: skip
    notes = " ".join(again.summary["notes"])
    assert "trainer.max_time=00:00:04 ended training" in notes
    assert "differs from an uninterrupted one" in notes
    assert 2 <= again.summary["epochs"] < 5000
    assert "test/acc" in again.summary["metrics"]


def test_the_time_used_is_in_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_budget, "clock", Clock())
    before, after = TimeBudget(100, 2), TimeBudget(100, 2)
    before._begin()
    state = before.state_dict()
    assert state["used"] == 1
    after.load_state_dict(state)
    after._begin()
    assert after.elapsed() == 2


@pytest.mark.parametrize("value", ["30", "00:30", "1:2:3:4:5", "00:61:00", "00:00:00", "half"])
def test_a_duration_of_another_form_is_refused_by_key(value: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.max_time={value}"):
        seconds_of("trainer.max_time", value)


def test_durations() -> None:
    assert seconds_of("x", "00:30:00") == 1800
    assert seconds_of("x", "01:00:00:01") == 86_401
