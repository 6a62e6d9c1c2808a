"""The log of a training run, including the commands that it suggests."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, TINY, Finished, train

import graft

SHORT = (*TINY, "trainer.max_epochs=2", "trainer.baseline=false", "logger.tensorboard=false")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("log") / "run"
    return train(folder, *SHORT, "callbacks.progress=lines", "trainer.val_check_interval=3")


def test_the_log_begins_with_counts_and_classes(finished: Finished) -> None:
    counts = finished.summary["data"]["counts"]
    first = next(line for line in finished.out.splitlines() if "train ·" in line)
    assert f"{sum(counts['train'].values()):,} train" in first
    assert f"{sum(counts['test'].values()):,}" in first
    assert "10 classes: 0, 1, 2" in first
    assert finished.out.index(first) < finished.out.index("parameters train")


def test_a_validation_within_an_epoch_has_a_line(finished: Finished) -> None:
    lines = [line for line in finished.out.splitlines() if line.startswith(("epoch 1/", "epoch 2/"))]
    shown = [re.match(r"epoch (\d)/2(?:, step (\d+))?  train/loss .* val/acc [\d.]+", line) for line in lines]
    assert [each and each.groups() for each in shown] == [("1", "3"), ("1", None), ("2", "9"), ("2", None)]


def test_the_log_ends_with_accuracy_per_class_best_epoch_and_the_next_commands(finished: Finished) -> None:
    summary, out = finished.summary, finished.out
    assert "test accuracy per class" in out
    row = next(line for line in out.splitlines() if re.match(r"\W+3\W+\d", line))
    correct, images, accuracy = re.findall(r"[\d.]+", row)[1:]
    assert int(correct) / int(images) == pytest.approx(summary["metrics"]["test/acc/3"])
    assert float(accuracy) == pytest.approx(summary["metrics"]["test/acc/3"], abs=1e-4)
    assert f"results are of epoch {summary['best_epoch']} of 2 (the best val/acc)" in out
    assert f"graft evaluate checkpoint={finished.folder}\n" in out
    assert f"graft predict checkpoint={finished.folder} " in out


def test_the_summary_names_the_parameters_that_train(tmp_path: Path) -> None:
    words = (
        "model=vgg_mini", "model.weights=bundled", "strategy=feature_extract", "data=digits", "review=none",
        "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.max_epochs=1", "trainer.test=false",
        "trainer.baseline=false", "logger.tensorboard=false", "callbacks.progress=none", "data.num_workers=0",
    )  # fmt: skip
    parameters = graft.train(*words, folder=tmp_path, echo=False).summary["parameters"]
    assert parameters["names"]
    assert not any(name.startswith("features.") for name in parameters["names"])
    assert parameters["trainable"] < parameters["total"]


def test_early_stopping_is_logged(tmp_path: Path) -> None:
    words = ("trainer.max_epochs=9", "callbacks.early_stopping=1", "optimizer.lr=1e-9", "callbacks.progress=none")
    run = graft.train(*SHORT, *words, folder=tmp_path, echo=False)
    assert run.summary["epochs"] < 9
    note = f"early stopping after epoch {run.summary['epochs']} of 9: val/acc has not improved in 1 validations"
    assert any(note in each for each in run.summary["notes"])
    assert note in (tmp_path / "train.log").read_text()


def test_a_terminal_shows_each_epoch_above_a_bar_that_counts_from_one(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    command = [sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={tmp_path / 'run'}", *SHORT]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, cwd=tmp_path)
    os.close(terminal)
    shown = b""
    try:
        while block := os.read(main, 2**16):
            shown += block
    except OSError:  # the terminal is closed
        pass
    assert process.wait(timeout=300) == 0, shown
    text = shown.decode(errors="replace")
    assert "Epoch 2/2" in text
    assert "Epoch 0/" not in text
    assert re.search(r"epoch 1/2  train/loss", text)
    assert re.search(r"epoch 2/2  train/loss", text)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
