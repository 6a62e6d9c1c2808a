"""`python train.py …` as a user runs it, on embedded data."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from commands import QUICK, ROOT, Finished, command, succeeded, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two epochs of vgg_mini on digits, everything at its default else."""
    folder = tmp_path_factory.mktemp("train") / "run"
    done = train(
        folder,
        "model=vgg_mini",
        "strategy=scratch",
        "data=digits",
        "augment=none",
        "trainer.max_epochs=2",
        "data.batch_size=64",
        "optimizer.lr=0.05",
        "trainer.precision=32-true",
        fresh=True,
    )
    assert done.code == 0, done.err
    return done


def test_a_run_writes_all_files(run: Finished) -> None:
    left = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert {"summary.json", "metrics.csv", "train.log", ".hydra/config.yaml", ".hydra/overrides.yaml"} <= left
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= left
    assert any(name.startswith("events.out.tfevents") for name in left)
    assert {path.name for path in run.folder.iterdir() if not path.name.startswith("events")} == {
        "curves.png",
        "confusion.png",
        "projector",
        "projector_config.pbtxt",
        "summary.json",
        "metrics.csv",
        "review.npz",
        "train.log",
        ".hydra",
        "checkpoints",
    }


def test_the_summary_has_the_documented_keys(run: Finished) -> None:
    summary = run.summary
    assert summary["status"] == "finished"
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc", "test/acc/7"} <= set(
        summary["metrics"]
    )
    assert summary["metrics"]["test/acc"] > 0.8, "two epochs on digits give about 0.95"
    assert summary["epochs"] == 2
    assert summary["images_per_second"] > 0
    assert summary["parameters"]["total"] == summary["parameters"]["trainable"] > 1e6
    assert summary["config"]["model"] == "vgg_mini"
    assert summary["classes"] == [str(digit) for digit in range(10)]
    assert sum(sum(counts.values()) for counts in summary["data"]["counts"].values()) == 1797
    assert len(summary["data"]["fingerprint"]) == 64
    assert summary["weights"]["source"] == "random"
    assert (run.folder / summary["checkpoint"]).is_file()
    assert {"python", "torch", "lightning", "graft"} <= set(summary["versions"])


def test_csv_and_tensorboard_have_equal_metrics_with_the_baseline_at_step_0(run: Finished) -> None:
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    assert rows[0]["step"] == "0"
    assert float(rows[0]["val/acc"]) < 0.4, "an untrained network knows nothing"
    events = EventAccumulator(str(run.folder))
    events.Reload()
    for name in ("val/acc", "val/loss", "train/loss", "train/acc"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        written = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert logged.keys() == written.keys()
        assert list(logged.values()) == pytest.approx([written[step] for step in logged], rel=1e-6)
    best = max(float(row["val/acc"]) for row in rows if row["val/acc"])
    assert run.summary["metrics"]["val/acc"] == best


def test_a_checkpoint_is_complete_plain_data(run: Finished) -> None:
    content = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    made = content["graft"]
    assert made["classes"] == run.summary["classes"]
    assert made["recipe"]["name"] == "vgg_mini"
    assert made["preprocessing"]["input_size"] == 32
    assert not content.get("optimizer_states")
    json.dumps(made)


def test_a_run_starts_from_the_checkpoint_of_another_run(run: Finished, tmp_path: Path) -> None:
    done = train(
        tmp_path / "run",
        "model=vgg_mini",
        "strategy=feature_extract",
        "data=digits",
        *QUICK[3:],
        f"model.weights={run.folder}/checkpoints/best.ckpt",
    )
    assert done.code == 0, done.err
    before = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    frozen = [name for name in before if name.startswith("network.features.")]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    head = [name for name in before if name.startswith("network.classifier.") and name.endswith("weight")]
    assert head
    assert not any(torch.equal(before[name], after[name]) for name in head)
    assert done.summary["weights"]["sha256"]
    assert done.summary["parameters"]["trainable"] < 1e4


def test_the_same_command_twice_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        done = train(tmp_path / name, *QUICK, "augment=basic", "seed=7")
        assert done.code == 0, done.err
        weights.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_validation_runs_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    done = train(tmp_path / "run", *QUICK, "trainer.limit_train_batches=7", "trainer.val_check_interval=3")
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [row["step"] for row in rows if row["val/loss"]] == ["0", "3", "6", "7"]
    assert all(row["train/loss"] for row in rows if row["val/loss"] and row["step"] != "0")


def test_the_log_line_of_an_epoch_without_validation_has_that_epochs_metrics(tmp_path: Path) -> None:
    words = ("trainer.limit_val_batches=0", "trainer.baseline=false", "callbacks.checkpoint=last")
    done = succeeded(train(tmp_path / "run", *QUICK, *words, "trainer.max_epochs=3"))
    logged = re.findall(
        r"epoch \d/3  train/loss ([\d.]+)  train/acc [\d.]+  \d", (done.folder / "train.log").read_text()
    )
    with (done.folder / "metrics.csv").open(newline="") as table:
        recorded = [f"{float(row['train/loss']):.4f}" for row in csv.DictReader(table) if row.get("train/loss")]
    assert len(recorded) == 3
    assert logged == recorded


def test_a_failed_run_has_status_failed_in_its_summary(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "data=folder", "data.root=nowhere", "strategy=scratch")
    assert done.code == 1
    assert "nowhere" in done.err
    assert "Traceback" not in done.err
    assert done.summary["status"] == "failed"
    assert "nowhere" in done.summary["error"]


def test_all_optional_features_of_training_run_together(tmp_path: Path) -> None:
    done = train(
        tmp_path / "run",
        *QUICK,
        "augment.mixup=0.2",
        "augment.cutmix=1.0",
        "loss.label_smoothing=0.1",
        "loss.class_weights=balanced",
        "trainer.gradient_clip_val=1.0",
        "callbacks.ema=0.9",
        "optimizer=adamw",
        "callbacks.early_stopping=1",
        "scheduler=onecycle",
        "strategy.decay_norm_and_bias=false",
        "trainer.accumulate_grad_batches=2",
        "model.dropout=0.2",
    )
    assert done.code == 0, done.err
    assert done.summary["status"] == "finished"


def test_a_sweep_ends_with_a_table_and_the_tensorboard_command(tmp_path: Path) -> None:
    done = command(
        tmp_path / "run",
        str(ROOT / "train.py"),
        "-m",
        *QUICK,
        "seed=0,1",
        "optimizer.lr=0.1,0.01",
        "hydra.sweep.dir=sweep",
    )
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "sweep").iterdir()} >= {
        "0",
        "1",
        "2",
        "3",
        "compare.md",
        "compare.csv",
    }
    table = (tmp_path / "sweep" / "compare.md").read_text()
    assert table.count("±") >= 4
    assert "optimizer.lr" in table
    assert "seed" not in table.splitlines()[0]
    assert "tensorboard --logdir" in done.out
    again = command(tmp_path / "run", "-m", "graft.cli", "compare", "runs=sweep", fresh=True)
    assert again.code == 0, again.err
    assert "optimizer.lr" in again.out


def test_val_check_interval_counts_optimizer_steps_and_combines_with_a_limit(tmp_path: Path) -> None:
    """Half of 41 batches make an epoch of 20, which are 10 steps of two."""
    words = ("trainer.limit_train_batches=0.5", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4")
    done = succeeded(train(tmp_path / "run", *QUICK, *words, "loss.class_weights={0: 2, 9: 0.5}"))
    with (done.folder / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert steps == [0, 4, 8, 10]
