"""Images with several labels, from a table to predictions: real commands on pictures of coloured shapes."""

import csv
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Finished, command, succeeded, train, weights
from one_training_step import composed
from PIL import Image, ImageDraw
from sklearn import metrics as sklearn_metrics
from table_files import write
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import graft
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.config.task import MULTI_LABEL, SINGLE_LABEL
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError
from graft.export.formats import ExportedNetwork
from graft.export.state_dict import Pickle
from graft.learning.restore import Restored
from graft.models import Recipe, build_network
from graft.models.heads import allow_negative_logits
from graft.tasks.follow_task import follow_task

NAMES = ("blue", "green", "red", "round")

NETWORK = ("model=vgg_custom", "model.table=[8,M,16,M]", "model.classifier=pooled", "model.input_size=32",
           "strategy=scratch", "augment=none", "optimizer.lr=0.05", "scheduler=none",
           "trainer.precision=32-true", "data.num_workers=0", "data.batch_size=16")  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 pictures of up to three coloured shapes, of which some are round, and a table of their labels."""
    root, draw = tmp_path_factory.mktemp("shapes"), np.random.RandomState(0)
    rows = []
    for number in range(80):
        picture = Image.fromarray((draw.rand(36, 36, 3) * 120).astype(np.uint8))
        labels = set()
        for colour in NAMES[:3]:
            if draw.rand() < 0.4:
                x, y = draw.randint(0, 22, 2).tolist()
                round_ = draw.rand() < 0.3
                shape = ImageDraw.Draw(picture).ellipse if round_ else ImageDraw.Draw(picture).rectangle
                shape((x, y, x + 13, y + 13), fill=colour)
                labels |= {colour, *(["round"] if round_ else [])}
        picture.save(root / f"{number}.png")
        rows.append((f"{number}.png", ";".join(sorted(labels))))
    assert any(not labels for _, labels in rows)
    return write(root / "labels.csv", [("file", "labels"), *rows])


def of(table: Path) -> tuple[str, ...]:
    return ("data=table", f"data.table={table}", "data.label_separator=';'")


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return succeeded(train(folder, *of(table), *NETWORK, "trainer.max_epochs=3", "metrics=[auroc,f1_macro]"))


def graft_command(folder: Path, *words: str) -> Finished:
    return succeeded(command(folder, "-m", "graft.cli", *words))


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_run_says_what_the_labels_change_and_measures_them(run: Finished) -> None:
    assert "so the loss is BinaryCrossEntropy instead of CrossEntropyLoss" in run.out
    assert "optimized_metric=val/map: with several labels per image there is no val/acc" in run.out
    assert "metrics.f1_macro: every run on several labels measures val/f1_macro" in run.out
    summary = run.summary
    assert summary["task"] == "multi-label"
    assert summary["config"]["optimized_metric"] == "val/map"
    assert set(summary["thresholds"]) == set(NAMES)
    for split in ("val", "test"):
        assert {f"{split}/{name}" for name in (*MULTI_LABEL.measured, "auroc")} <= summary["metrics"].keys()
    assert {f"test/ap/{name}" for name in NAMES} <= summary["metrics"].keys()
    assert not any(name.split("/")[1] == "acc" for name in summary["metrics"])
    best = max(row["val/map"] for row in graft.FinishedRun(run.folder).table if "val/map" in row and row["step"])
    assert summary["metrics"]["val/map"] == pytest.approx(best)
    content = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)["graft"]
    assert content["task"] == "multi-label"
    assert dict(zip(content["classes"], content["thresholds"], strict=True)) == summary["thresholds"]


def test_tensorboard_shows_labels_and_no_confusion_matrix(run: Finished) -> None:
    events = EventAccumulator(str(run.folder), size_guidance={"images": 0})
    events.Reload()
    tags = set(events.Tags()["images"])
    assert {"visuals/acc_per_class", "visuals/val_predictions", "visuals/test_predictions", "visuals/worst"} <= tags
    assert not {"visuals/confusion", "visuals/calibration"} & tags
    assert (run.folder / "labels.png").is_file()
    assert not (run.folder / "confusion.png").exists()
    assert (run.folder / "review.npz").is_file()
    assert "review: no" not in run.out


def test_evaluate_repeats_the_test_and_its_file_gives_scikit_learns_scores(run: Finished, tmp_path: Path) -> None:
    words = ("evaluate", f"checkpoint={run.folder}", "metrics=log_loss", f"hydra.run.dir={tmp_path / 'e'}")
    assert "equal to the run's metrics" in graft_command(tmp_path / "c", *words).out
    result = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert not (tmp_path / "e" / "confusion_matrix.csv").exists()
    rows = read(tmp_path / "e" / "predictions.csv")
    truth = np.array([[name in row["true"].split(";") for name in NAMES] for row in rows])
    decided = np.array([[name in row["labels"].split(";") for name in NAMES] for row in rows])
    scores = np.array([[float(row[f"probability/{name}"]) for name in NAMES] for row in rows])
    metrics = result["metrics"]
    assert metrics["test/map"] == pytest.approx(sklearn_metrics.average_precision_score(truth, scores))
    assert metrics["test/f1_macro"] == pytest.approx(sklearn_metrics.f1_score(truth, decided, average="macro"))
    assert metrics["test/exact_match"] == pytest.approx(np.mean([int(row["correct"]) for row in rows]))
    for label, name in enumerate(NAMES):
        each = result["classes"][name]
        assert each["f1"] == pytest.approx(sklearn_metrics.f1_score(truth[:, label], decided[:, label]))
        assert each["threshold"] == run.summary["thresholds"][name]


def test_views_and_ensembles_average_probabilities_and_thresholds(run: Finished, tmp_path: Path) -> None:
    last = run.folder / "checkpoints" / "last.ckpt"
    words = ("evaluate", f"checkpoint=[{run.folder},{last}]", "tta=true", "views=[identity,hflip]")
    graft_command(tmp_path / "c", *words, f"hydra.run.dir={tmp_path / 'e'}")
    result = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert len(result["members"]) == 2
    for name in NAMES:
        own = [member["classes"][name]["threshold"] for member in result["members"]]
        assert result["classes"][name]["threshold"] == pytest.approx(sum(own) / 2)
    losses = [member["metrics"]["test/loss"] for member in result["members"]]
    assert result["metrics"]["test/loss"] <= sum(losses) / 2 + 1e-6


def test_predictions_of_the_command_the_export_and_the_api_agree(run: Finished, table: Path, tmp_path: Path) -> None:
    source = table.parent / "3.png"
    export = ("export", f"checkpoint={run.folder}", "format=state_dict", f"folder={tmp_path / 'x'}")
    assert "the same labels for all" in graft_command(tmp_path / "c", *export).out
    (exported,) = (tmp_path / "x").glob("*.safetensors")
    described = json.loads(exported.with_name(f"{exported.name}.json").read_text())
    assert (described["task"], described["activation"]) == ("multi-label", "sigmoid")
    assert described["thresholds"] == list(run.summary["thresholds"].values())
    out = tmp_path / "p.csv"
    graft_command(tmp_path / "c", "predict", f"checkpoint={run.folder}", f"source={source}", f"output={out}")
    (row,) = read(out)
    [first], [second] = (graft.load(file).predict(source) for file in (run.folder, exported))
    assert first.labels == second.labels
    assert row["labels"] == ";".join(first.labels)
    for name in NAMES:
        assert float(row[f"probability/{name}"]) == pytest.approx(first.by_class[name], rel=1e-5)
        assert (name in first.labels) == (first.by_class[name] >= run.summary["thresholds"][name])
    assert first.probabilities == tuple(sorted(first.by_class.values(), reverse=True))
    images = graft.FinishedRun(run.folder).review("test")
    assert images.accuracy == pytest.approx(run.summary["metrics"]["test/exact_match"])
    assert images.confusion() is None
    assert images.grid(4).width > 0


def test_a_resumed_run_equals_an_uninterrupted_one(run: Finished, table: Path, tmp_path: Path) -> None:
    words = (*of(table), *NETWORK, "metrics=[auroc,f1_macro]")
    succeeded(train(tmp_path / "r", *words, "trainer.max_epochs=1", "review=none"))
    resumed = succeeded(train(tmp_path / "r", *words, "trainer.max_epochs=3", "review=none", "resume=auto"))
    for name, tensor in weights(run).items():
        assert torch.equal(weights(resumed)[name], tensor), name
    assert resumed.summary["metrics"] == run.summary["metrics"]
    assert resumed.summary["thresholds"] == run.summary["thresholds"]


@pytest.mark.slow
def test_two_processes_score_like_one_that_evaluates_their_checkpoint(table: Path, tmp_path: Path) -> None:
    words = (*of(table), *NETWORK, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    more = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.baseline=false", "review=none")
    run = succeeded(train(tmp_path / "run", *words, *more, "data.test_fraction=0.3"))
    for split in ("val", "test"):
        folder = tmp_path / split
        graft_command(
            tmp_path / "c", "evaluate", f"checkpoint={run.folder}", f"split={split}", f"hydra.run.dir={folder}"
        )
        metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
        for name in MULTI_LABEL.measured:
            assert metrics[f"{split}/{name}"] == pytest.approx(run.summary["metrics"][f"{split}/{name}"], abs=1e-5), (
                name
            )


def test_packed_images_keep_their_labels_and_train_to_the_same_weights(
    run: Finished, table: Path, tmp_path: Path
) -> None:
    words = ("pack", *of(table), f"output={tmp_path / 'shards'}", f"paths.outputs={tmp_path / 'outputs'}")
    graft_command(tmp_path / "c", *words)
    words = ("data=shards", f"data.root={tmp_path / 'shards'}", *NETWORK, "trainer.max_epochs=3", "review=none",
             "metrics=[auroc,f1_macro]")  # fmt: skip
    packed = succeeded(train(tmp_path / "packed", *words))
    found = weights(packed)
    for name, tensor in weights(run).items():
        assert torch.equal(found[name], tensor), name
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        described = [json.load(tar.extractfile(each)) for each in tar if each.name.endswith(".json")]  # type: ignore[arg-type]
    expected = {row["file"]: [label for label in row["labels"].split(";") if label] for row in read(table)}
    assert {each["name"]: each["labels"] for each in described} == expected


def test_a_soup_chooses_its_own_thresholds_and_teaches_a_student(run: Finished, table: Path, tmp_path: Path) -> None:
    content = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    other = tmp_path / "other" / "checkpoints" / "best.ckpt"
    other.parent.mkdir(parents=True)
    head = next(name for name in reversed(content["state_dict"]) if name.endswith("bias"))
    torch.save(content | {"state_dict": content["state_dict"] | {head: content["state_dict"][head] + 1}}, other)
    words = ("soup", str(run.folder), str(other), "method=uniform", f"hydra.run.dir={tmp_path / 'soup'}")
    assert "test/map" in graft_command(tmp_path, *words).out
    soup = json.loads((tmp_path / "soup" / "summary.json").read_text())
    assert soup["soup"]["metric"] == "val/map"
    assert set(soup["thresholds"]) == set(NAMES)
    for name, threshold in soup["thresholds"].items():  # the logits of the mean are half a unit above the run's
        logit, before = (np.log(each / (1 - each)) for each in (threshold, run.summary["thresholds"][name]))
        assert logit == pytest.approx(before + 0.5, abs=0.01)
    for name in ("map", "f1_micro", "exact_match"):
        assert soup["metrics"][f"test/{name}"] == pytest.approx(run.summary["metrics"][f"test/{name}"]), name
    evaluated = graft_command(tmp_path / "c", "evaluate", f"checkpoint={tmp_path / 'soup'}",
                              f"hydra.run.dir={tmp_path / 'e'}")  # fmt: skip
    assert "equal to the run's metrics" in evaluated.out

    distill = (
        "loss=distill",
        f"loss.teacher={tmp_path / 'soup'}",
        "trainer.log_every_n_steps=2",
        "trainer.max_epochs=1",
        "review=none",
    )
    student = succeeded(train(tmp_path / "student", *of(table), *NETWORK, *distill))
    assert "so the loss is BinaryCrossEntropy" in student.out
    assert any("train/loss_distill" in row for row in graft.FinishedRun(student.folder).table)


def test_cached_features_give_the_same_run(table: Path, tmp_path: Path) -> None:
    words = (*of(table), "model=vgg_mini", "model.weights=bundled", "strategy=feature_extract", "augment=none",
             "trainer.max_epochs=2", "trainer.precision=32-true", "data.num_workers=0", "review=none",
             f"paths.cache={tmp_path / 'cache'}")  # fmt: skip
    runs = [succeeded(train(tmp_path / mode, *words, f"cache={mode}")) for mode in ("features", "none")]
    first, second = (run.summary["metrics"] for run in runs)
    assert first == pytest.approx(second, abs=1e-5)
    assert (tmp_path / "cache").is_dir()


def test_graft_inspect_counts_labels(table: Path, tmp_path: Path) -> None:
    words = ("inspect", *of(table), "near=0", "sheets=0", f"output={tmp_path / 'i.json'}")
    out = graft_command(tmp_path / "c", *words).out
    assert "labels per image:" in out
    report = json.loads((tmp_path / "i.json").read_text())
    rows = [tuple(filter(None, row["labels"].split(";"))) for row in read(table)]
    assert report["labels"]["without"] == sum(not row for row in rows)
    assert report["labels"]["cardinality"] == pytest.approx(np.mean([len(row) for row in rows]))
    together = {tuple(pair["labels"]): pair["images"] for pair in report["labels"]["together"]}
    assert together["blue", "green"] == sum({"blue", "green"} <= set(row) for row in rows)
    assert sum(report["counts"][split]["red"] for split in ("train", "val", "test")) == sum(
        "red" in row for row in rows
    )


def test_a_network_that_ends_in_relu_can_say_no_and_is_exported_so(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network, recipe = build_network(Recipe("squeezenet1_1"), 5).eval(), Recipe("squeezenet1_1")
    assert (network(images) >= 0).all()  # a sigmoid would give each label at least one half
    allow_negative_logits(network)
    with torch.no_grad():
        network.classifier[1].bias.fill_(-1.0)
    assert (network(images) < 0).any()
    restored = Restored(network, recipe, NAMES, Preprocessing(32, 32), "x", MULTI_LABEL, (0.5,) * 5)
    exported = ExportedNetwork(replace(restored, classes=(*NAMES, "fifth")), preprocess=False)
    assert torch.equal(exported.origin.filled(exported.weights())(images), network(images))
    assert "network.set_submodule('classifier.2'" in Pickle().how_to_load(exported, tmp_path / "x.pth")


def settled(*overrides: str) -> TrainConfig:
    return typed(composed("data=table", *overrides), TrainConfig)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sampler=balanced"], r"data.sampler=balanced: .*\n.*loss.positive_weights=balanced"),
        (["loss=logit_adjusted"], r"LogitAdjustedLoss: is of one class per image, .*\nUse loss=cross_entropy"),
        (["metrics=top5"], r"metrics.top5._target_=.*MulticlassAccuracy: is of one class per image"),
        (["metrics=[mcc,kappa]"], r"metrics.kappa._target_=.*\nmetrics=mcc measures the agreement"),
        (["metrics=ece"], r"metrics.ece.*\nmetrics=log_loss"),
        (["+metrics.map._target_=my.Metric"], r"metrics.map: every run on several labels measures val/map itself"),
    ],
)
def test_options_for_one_class_per_image_are_refused_by_name(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        follow_task(settled(*overrides), MULTI_LABEL)


def test_options_with_a_counterpart_become_it_and_once_is_enough() -> None:
    cfg = settled(
        "loss=focal", "loss.gamma=1", "metrics=[f1,mcc,auroc,average_precision,log_loss]", "scheduler=plateau"
    )
    assert len(follow_task(cfg, MULTI_LABEL)) == 2
    assert cfg.loss.arguments()["_target_"] == "graft.learning.multi_label.BinaryFocalLoss"
    assert cfg.loss.arguments()["gamma"] == 1
    assert [node["_target_"].rpartition(".")[2] for node in cfg.metrics.parts().values()] == [
        "MultilabelF1Score", "MultilabelMatthewsCorrCoef", "AUROC", "AveragePrecision", "LogLoss",
    ]  # fmt: skip
    assert follow_task(cfg, MULTI_LABEL) == []


def test_one_label_per_image_has_no_map_to_choose_by() -> None:
    with pytest.raises(ConfigError, match=r"optimized_metric=val/map: measured only for images with several labels"):
        follow_task(settled("optimized_metric=val/map"), SINGLE_LABEL)
    with pytest.raises(ConfigError, match=r"scheduler.monitor=val/f1_macro: .*\nTo measure it: metrics=f1_macro"):
        follow_task(settled("scheduler=plateau", "scheduler.monitor=val/f1_macro"), SINGLE_LABEL)
