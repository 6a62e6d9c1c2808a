"""Runs that are killed at random moments, or asked to stop, resume exactly."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUICK, signal_after_first_checkpoint, started, succeeded, train

import graft
from graft.learning.checkpoints import read_checkpoint

WORDS = (
    *QUICK, "model.batch_norm=true", "data.batch_size=8", "trainer.max_epochs=4", "trainer.limit_train_batches=15",
    "trainer.log_every_n_steps=2", "trainer.baseline=false", "review=none", "callbacks.progress=none",
    "callbacks.checkpoint_every_n_steps=3",
)  # fmt: skip

CASES: dict[str, tuple[str, ...]] = {
    "scratch": ("augment=basic",),
    "finetune": ("strategy=finetune", "model.batch_norm=null", "scheduler=step"),
    "feature_extract": ("strategy=feature_extract", "model.batch_norm=null", "cache=none"),
    "feature_extract, cached": ("strategy=feature_extract", "model.batch_norm=null", "cache=features"),
    "gradual": ("strategy=gradual", "model.batch_norm=null", "cache=none", "augment=none"),
    "gradual, cached": ("strategy=gradual", "model.batch_norm=null", "cache=features", "augment=none"),
    "everything": (
        "optimizer=adamw", "scheduler=onecycle", "callbacks.ema=0.9", "augment.mixup=0.5",
        "trainer.gradient_clip_val=1", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=5",
        "callbacks.early_stopping=9",
    ),
    "plateau, workers": (
        "scheduler=plateau", "scheduler.patience=0", "data.resident_gb=0", "data.num_workers=1", "augment=basic",
        "callbacks.checkpoint=last",
    ),
}  # fmt: skip

SOME = [case for case in CASES if case != "everything"]


def killed_again_and_again(folder: Path, words: tuple[str, ...], kills: int, chance: random.Random) -> int:
    """Start the run, kill it after a while, resume it, …; returns how often it was killed before it finished."""
    for kill in range(kills):
        child = started(folder, *words, "resume=auto")
        child.join(chance.uniform(0.2, 3))
        if child.exitcode is not None:
            assert child.exitcode == 0
            return kill
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    child = started(folder, *words, "resume=auto")
    child.join()
    assert child.exitcode == 0
    return kills


def require_the_same(one: graft.FinishedRun, other: graft.FinishedRun) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        expected, got = (torch.load(run.folder / "checkpoints" / name, weights_only=True) for run in (one, other))
        differ = [
            key for key, value in expected["state_dict"].items() if not torch.equal(value, got["state_dict"][key])
        ]
        assert not differ, name
    assert (one.folder / "metrics.csv").read_bytes() == (other.folder / "metrics.csv").read_bytes()
    assert one.metrics == other.metrics
    assert one.summary["epochs"] == other.summary["epochs"]


def words_of(case: str, folder: Path) -> tuple[str, ...]:
    words = (*WORDS, *CASES[case], f"paths.cache={folder / 'cache'}")
    return words if "strategy=" not in "".join(CASES[case]) else (*words, "model.weights=bundled")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_twenty_random_moments_ends_bit_identically(case: str, tmp_path: Path) -> None:
    words = (*words_of(case, tmp_path), f"trainer.max_epochs={80 if case == 'feature_extract, cached' else 16}")
    whole = graft.train(*words, folder=tmp_path / "whole", echo=False)
    kills = killed_again_and_again(tmp_path / "part", words, 20, random.Random(case))
    print(f"{case}: killed {kills} times")
    assert kills >= 10
    require_the_same(whole, graft.FinishedRun(tmp_path / "part"))


def test_a_run_killed_at_a_few_random_moments_ends_bit_identically(tmp_path: Path) -> None:
    words = (*words_of("gradual, cached", tmp_path), "trainer.max_epochs=3", "trainer.limit_train_batches=8")
    whole = graft.train(*words, folder=tmp_path / "whole", echo=False)
    killed_again_and_again(tmp_path / "part", words, 2, random.Random(0))
    require_the_same(whole, graft.FinishedRun(tmp_path / "part"))


@pytest.mark.parametrize("epochs", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_plateau_is_detected_after_an_interruption_at_the_end_of_its_epoch(epochs: int, tmp_path: Path) -> None:
    words = (*WORDS, "scheduler=plateau", "scheduler.patience=0", "augment=basic", "callbacks.checkpoint=last")
    whole = whole_plateau(tmp_path.parent / "whole_plateau", words)
    graft.train(*words, f"trainer.max_epochs={epochs}", "trainer.test=false", folder=tmp_path, echo=False)
    require_the_same(whole, graft.train(*words, "resume=auto", folder=tmp_path, echo=False))


def whole_plateau(folder: Path, words: tuple[str, ...]) -> graft.FinishedRun:
    """A run in which the learning rate falls, made once."""
    whole = graft.FinishedRun(folder) if folder.is_dir() else graft.train(*words, folder=folder, echo=False)
    assert len({row["lr/head"] for row in whole.table if "lr/head" in row}) > 1
    return whole


class Killed(BaseException):
    """As good as kill -9 to what is on disk."""


@pytest.mark.parametrize("case", ["everything", *(pytest.param(case, marks=pytest.mark.slow) for case in SOME)])
def test_a_run_resumes_within_an_epoch(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graft.learning.checkpoint_writing import ResumePoint

    words = words_of(case, tmp_path)
    whole = graft.train(*words, folder=tmp_path / "whole", echo=False)
    on_train_batch_end = ResumePoint.on_train_batch_end
    steps = 0

    def die(self: ResumePoint, trainer: Any, *others: Any) -> None:
        nonlocal steps
        on_train_batch_end(self, trainer, *others)
        steps += 1
        if steps in (19, 30):
            raise Killed

    monkeypatch.setattr(ResumePoint, "on_train_batch_end", die)
    for _ in range(2):
        with pytest.raises(Killed):
            graft.train(*words, "resume=auto", folder=tmp_path / "part", echo=False)
        left = torch.load(tmp_path / "part" / "checkpoints" / "last.ckpt", weights_only=True)
        done = left["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        assert 0 < done["ready"] < 15, "within an epoch"
    require_the_same(whole, graft.train(*words, "resume=auto", folder=tmp_path / "part", echo=False))


@pytest.mark.parametrize(
    "name", ["SIGTERM", "SIGUSR1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGINT", "SIGHUP"))]
)
def test_a_stop_signal_saves_the_step_and_ends_the_run(name: str, tmp_path: Path) -> None:
    words = (
        *WORDS,
        "trainer.max_epochs=3000",
        "trainer.limit_train_batches=100",
        "callbacks.checkpoint_every_n_steps=10",
    )
    child = started(tmp_path, *words)
    last = tmp_path / "checkpoints" / "last.ckpt"
    while not last.is_file() and child.is_alive():
        time.sleep(0.01)
    time.sleep(random.random() / 2)
    assert child.pid is not None
    os.kill(child.pid, signal.Signals[name])
    child.join(300)
    assert child.exitcode == 1  # of an exception: KeyboardInterrupt, for which the command has the exit code 130
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert "ended" in summary
    assert read_checkpoint(last)["global_step"] > 0


def test_a_stop_signal_during_a_checkpoint_write_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graft.learning.checkpoint_writing import AtomicCheckpointIO

    words = (*WORDS, "callbacks.checkpoint_every_n_steps=null", "trainer.max_epochs=3")
    whole = graft.train(*words, folder=tmp_path / "whole", echo=False)
    save = AtomicCheckpointIO.save_checkpoint

    def interrupted(self: AtomicCheckpointIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        signal.raise_signal(signal.SIGINT)
        save(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        graft.train(*words, folder=tmp_path / "part", echo=False)
    monkeypatch.undo()
    assert json.loads((tmp_path / "part" / "summary.json").read_text())["status"] == "interrupted"
    require_the_same(whole, graft.train(*words, "resume=auto", folder=tmp_path / "part", echo=False))


@pytest.mark.slow
def test_two_processes_stop_in_the_same_step(tmp_path: Path) -> None:
    words = (*WORDS, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=3000")
    code, out = signal_after_first_checkpoint(tmp_path / "run", signal.SIGTERM, *words)
    assert code == 130
    assert "resume=auto" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"
    steps = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    more = (*words, f"trainer.max_steps={steps + 5}", "resume=auto")
    assert succeeded(train(tmp_path / "run", *more)).summary["status"] == "finished"
