"""Chosen metrics from training to evaluation and comparison."""

import csv
import json
from pathlib import Path

import pytest
from commands import Finished, command, succeeded, train

SHORT = (
    "model=vgg_mini", "data=digits", "strategy=scratch", "augment=none", "review=none", "data.num_workers=0",
    "trainer.precision=32-true", "trainer.baseline=false", "trainer.limit_train_batches=12", "optimizer.lr=0.02",
)  # fmt: skip
CHOSEN = ("metrics=[ece,f1_macro,auroc]", "optimized_metric=val/ece", "loss=focal", "data.sampler=balanced")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("runs") / "ece"
    return succeeded(train(folder, *SHORT, *CHOSEN, "trainer.max_epochs=3"))


def test_the_checkpoint_is_that_of_the_smallest_calibration_error(run: Finished) -> None:
    with (run.folder / "metrics.csv").open() as file:
        errors = [float(row["val/ece"]) for row in csv.DictReader(file) if row["val/ece"]]
    assert len(errors) == 3
    assert run.summary["best_epoch"] == errors.index(min(errors)) + 1
    assert run.summary["metrics"]["val/ece"] == min(errors) < max(errors)
    assert run.summary["higher_is_better"] == {"ece": False, "f1_macro": True, "auroc": True}


def test_evaluate_reproduces_the_metrics_of_the_run_and_adds_others(run: Finished, tmp_path: Path) -> None:
    words = ("-m", "graft.cli", "evaluate", f"checkpoint={run.folder}", f"hydra.run.dir={tmp_path}/out")
    done = succeeded(command(tmp_path / "out", *words, "metrics=[log_loss,top5]", "metrics.top5.top_k=2"))
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    names = ("test/loss", "test/ece", "test/f1_macro", "test/auroc")
    assert {name: result["metrics"][name] for name in names} == {name: run.summary["metrics"][name] for name in names}
    assert set(result["run"]) == {*names, "test/acc"}
    assert result["metrics"]["test/acc"] < result["metrics"]["test/top5"] <= 1
    assert result["metrics"]["test/log_loss"] > result["metrics"]["test/loss"], "a focal loss is smaller"
    assert "equal to the run's metrics" in done.out


def test_compare_orders_by_the_smallest_calibration_error(run: Finished, tmp_path: Path) -> None:
    other = succeeded(train(run.folder.parent / "other", *SHORT, *CHOSEN, "trainer.max_epochs=1", "optimizer.lr=0.001"))
    errors = {each.folder.name: each.summary["metrics"]["val/ece"] for each in (run, other)}
    done = succeeded(command(tmp_path / "out", "-m", "graft.cli", "compare", f"runs={run.folder.parent}"))
    assert "by val/ece" in done.out
    first, second = (line for line in (run.folder.parent / "compare.md").read_text().splitlines()[2:4])
    best = min(errors, key=errors.__getitem__)
    assert f"{min(errors.values()):.3f}" in first
    assert f"{max(errors.values()):.3f}" in second
    assert best in first


def test_two_processes_measure_what_one_does_with_a_padded_last_batch(tmp_path: Path) -> None:
    words = (
        "model=vgg_custom", "model.table=[8,M,16,M]", "model.classifier=vgg", "model.hidden=64", "model.input_size=32",
        "model.dropout=0", "model.batch_norm=false", *SHORT[1:], "metrics=[ece,f1_macro,auroc,log_loss]", "loss=focal",
        "optimizer.lr=1e-9", "trainer.max_epochs=1", "trainer.limit_train_batches=1", "data.batch_size=20",
        "data.val_fraction=0.1005",
    )  # fmt: skip
    one = succeeded(train(tmp_path / "one", *words))
    two = succeeded(train(tmp_path / "two", *words, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"))
    assert sum(one.summary["data"]["counts"]["val"].values()) % 2, "one process has an image less"
    names = [name for name in one.summary["metrics"] if not name.startswith("train/")]
    assert len(names) > 12
    for name in names:
        assert two.summary["metrics"][name] == pytest.approx(one.summary["metrics"][name], abs=1e-5), name
