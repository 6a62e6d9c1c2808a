"""`graft evaluate` reproduces the metrics of the run, matches other data by class name and agrees with scikit-learn."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import succeeded, train
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, top_k_accuracy_score

from graft.config import conf_dir
from graft.config.commands import EvaluateConfig
from graft.config.registration import register, typed
from graft.data.loading import load_splits
from graft.errors import DataError, TrainingError
from graft.learning.checkpoints import checkpoint_file, checkpoint_files, read_checkpoint
from graft.learning.restore import from_checkpoint
from graft.models.normalise import Normalise
from graft.tasks import evaluation
from graft.tasks.recorded_data import notes_on_changed_data, run_config, summary_next_to


def composed(task: str, *overrides: str) -> Any:
    register()
    with initialize_config_dir(str(conf_dir())):
        config = compose(task, list(overrides))
    return typed(config, EvaluateConfig) if task == "evaluate" else config


def evaluated(run: Path, folder: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """What `graft evaluate checkpoint=run OVERRIDES` writes: evaluation.json and the rows of predictions.csv."""
    config = composed("evaluate", f"checkpoint={run}", *overrides)
    overridden = frozenset(word.partition("=")[0] for word in overrides)
    evaluation.run(config, checkpoint_files(config.checkpoint), overridden, folder)
    with (folder / "predictions.csv").open() as file:
        result = json.loads((folder / "evaluation.json").read_text())
        return result | {"folder": folder}, list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tested(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, str]]]:
    return evaluated(digits_run, tmp_path_factory.mktemp("evaluate"), "topk=10")


def test_test_metrics_are_reproduced_to_the_bit(digits_run: Path, tested: Any) -> None:
    then = json.loads((digits_run / "summary.json").read_text())["metrics"]
    now = tested[0]["metrics"]
    of_test = {name: value for name, value in then.items() if name.startswith("test/")}
    assert len(of_test) == 12
    assert {name: now[name] for name in of_test} == of_test
    assert tested[0]["run"] == {name: then[name] for name in ("test/loss", "test/acc")}
    assert 0.2 < now["test/acc"] < 1, "a network that has learnt something, but not all, is what makes this test tell"


def test_validation_metrics_are_reproduced_to_the_bit(digits_run: Path, tmp_path: Path) -> None:
    then = read_checkpoint(digits_run / "checkpoints" / "best.ckpt")["graft"]["metrics"]
    now, _ = evaluated(digits_run, tmp_path, "split=val")
    assert (now["metrics"]["val/loss"], now["metrics"]["val/acc"]) == (then["val/loss"], then["val/acc"])


def test_metrics_equal_those_of_scikit_learn(tested: Any) -> None:
    result, rows = tested
    classes = [str(digit) for digit in range(10)]
    true, predicted = [row["true"] for row in rows], [row["predicted"] for row in rows]
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, labels=classes, zero_division=0)
    for label, name in enumerate(classes):
        figures = result["classes"][name]
        assert figures["images"] == support[label]
        assert [figures["precision"], figures["recall"], figures["f1"]] == pytest.approx(
            [precision[label], recall[label], f1[label]], abs=1e-6
        )
    assert result["metrics"]["test/f1"] == pytest.approx(f1.mean(), abs=1e-6)
    names = ["predicted", *(f"class_{rank}" for rank in range(2, 11))]
    figures = ["probability", *(f"probability_{rank}" for rank in range(2, 11))]
    scores = [
        [dict(zip([r[n] for n in names], [float(r[f]) for f in figures], strict=True))[c] for c in classes]
        for r in rows
    ]
    assert np.sum(scores, axis=1) == pytest.approx(1, abs=1e-4)
    assert result["metrics"]["test/top5"] == pytest.approx(top_k_accuracy_score(true, scores, k=5, labels=classes))
    assert [row["correct"] for row in rows] == [str(int(t == p)) for t, p in zip(true, predicted, strict=True)]


def test_ece_is_the_gap_between_confidence_and_accuracy_over_15_bins(tested: Any) -> None:
    result, rows = tested
    confidence = np.array([float(row["probability"]) for row in rows])
    right = np.array([row["correct"] == "1" for row in rows])
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    assert result["metrics"]["test/ece"] == pytest.approx(sum(gaps), abs=1e-4)


def test_the_confusion_matrix_has_true_and_predicted_names(tested: Any) -> None:
    rows = tested[1]
    with (Path(tested[0]["folder"]) / "confusion_matrix.csv").open() as file:
        header, *body = csv.reader(file)
    true, predicted = [row["true"] for row in rows], [row["predicted"] for row in rows]
    assert [[int(cell) for cell in line[1:]] for line in body] == confusion_matrix(true, predicted).tolist()
    assert header[1:] == [line[0] for line in body]


def test_tta_averages_the_probabilities_of_the_views(digits_run: Path, tmp_path: Path) -> None:
    result, rows = evaluated(digits_run, tmp_path, "tta=true", "trainer.precision=32", "topk=10")
    assert result["views"] == ["identity", "hflip"]
    assert result["run"], "the run's figures are shown beside it"
    restored = from_checkpoint(digits_run / "checkpoints" / "best.ckpt")
    images = load_splits("digits", root=None, seed=0, arguments={"split_seed": 3}).test
    by_name = dict(zip(images.names, range(len(images)), strict=True))
    chosen = rows[:20]
    pixels = np.stack(
        [images.load(by_name[row["image"]]).resize((32, 32), Image.Resampling.BILINEAR) for row in chosen]
    )
    batch = Normalise(restored.preprocessing)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.inference_mode():
        mean = (restored.network(batch).softmax(1) + restored.network(batch.flip(3)).softmax(1)) / 2
    assert [float(row["probability"]) for row in chosen] == pytest.approx(mean.max(1).values.tolist(), abs=1e-4)
    assert [row["predicted"] for row in chosen] == [str(label) for label in mean.argmax(1).tolist()]


FOUR = "views=[identity,hflip,corners,hflip_corners]"


def test_a_run_tested_in_several_views_is_evaluated_in_the_same(tmp_path: Path) -> None:
    """Its frozen layers' features were computed once for training; the test needs the images."""
    words = ("model=vgg_mini", "data=digits", "strategy=feature_extract", "freeze=backbone", "cache=features",
             "optimizer.lr=0.002", "trainer.max_epochs=1", "trainer.limit_train_batches=20", "trainer.baseline=false",
             "logger=none", "review=none", "tta=true", FOUR,
             "data.preprocess.fit=crop", "data.preprocess.resize_size=36")  # fmt: skip
    run = succeeded(train(tmp_path / "run", *words))
    assert run.summary["views"] == ["identity", "hflip", "corners", "hflip_corners"]
    then = {name: run.summary["metrics"][name] for name in ("test/loss", "test/acc")}
    again, _ = evaluated(run.folder, tmp_path / "again")
    assert {name: again["metrics"][name] for name in then} == then
    assert again["views"] == run.summary["views"]
    once, _ = evaluated(run.folder, tmp_path / "once", "tta=false")
    assert once["views"] == ["identity"]
    assert once["metrics"]["test/loss"] != then["test/loss"]


def test_a_test_in_corners_has_a_margin_or_is_refused_at_once(tmp_path: Path) -> None:
    words = ("model=vgg_mini", "data=digits", "augment=none", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
             "trainer.baseline=false", "logger=none", "review=none", "tta=true",
             "views=[identity,corners]")  # fmt: skip
    run = succeeded(train(tmp_path / "run", *words, "data.preprocess.fit=crop", "data.preprocess.resize_size=40"))
    again, _ = evaluated(run.folder, tmp_path / "again")
    assert again["metrics"]["test/loss"] == run.summary["metrics"]["test/loss"]
    refused = train(tmp_path / "refused", *words)
    assert refused.code == 1
    assert "corners need a margin" in refused.err
    assert "epoch 1" not in refused.out


def test_another_data_set_with_some_of_the_classes_is_matched_by_name(
    digits_run: Path, tested: Any, tmp_path: Path
) -> None:
    images = load_splits("digits", root=None, seed=0, arguments={"split_seed": 3}).test
    for index, name in enumerate(images.names):
        if name.startswith(("3/", "7/")):
            file = tmp_path / "photos" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            images.load(index).save(file)
    result, rows = evaluated(
        digits_run, tmp_path / "out", "data=folder", f"data.root={tmp_path}/photos", "split=all", "topk=10"
    )
    then = {row["image"]: row for row in tested[1] if row["true"] in "37"}
    assert {row["image"].removesuffix(".png") for row in rows} == set(then)
    for row in rows:
        before = then[row["image"].removesuffix(".png")]
        assert (row["true"], row["predicted"]) == (before["true"], before["predicted"])
    assert result["run"] == {}, "another set has no figures of the run to be compared with"
    assert set(result["metrics"]) >= {"all/acc/3", "all/acc/7"}
    assert "all/acc/0" not in result["metrics"]


def test_a_class_the_network_does_not_know_names_both_lists(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no_face.*\n.*0, 1, 2.*\n.*face, no_face"):
        evaluated(digits_run, tmp_path, "data=faces")


def test_naming_the_data_set_of_the_run_keeps_its_splits() -> None:
    made = OmegaConf.to_container(composed("train", "data=digits", "data.shots=60", "data.split_seed=3"))
    for overrides in ((), ("data=digits",)):
        config = composed("evaluate", "checkpoint=x", *overrides)
        run = run_config(config, made, {word.partition("=")[0] for word in overrides})
        assert (run.data.shots, run.data.split_seed) == (60, 3)
    asked = composed("evaluate", "checkpoint=x", "data=digits", "data.shots=5")
    assert run_config(asked, made, {"data", "data.shots"}).data.shots == 5


def test_moved_data_are_found_by_paths_data_or_data_root() -> None:
    made = OmegaConf.to_container(composed("train", "paths.data=/old", "data.val_fraction=0.3"), resolve=True)
    run = run_config(composed("evaluate", "checkpoint=x", "paths.data=/new"), made, {"paths.data"})
    assert (run.data.root, run.data.val_fraction) == ("/new/hymenoptera_data", 0.3)
    run = run_config(composed("evaluate", "checkpoint=x", "data.root=/here"), made, {"data.root"})
    assert (run.data._target_, run.data.root) == ("graft.data.sources.hymenoptera.load", "/here")
    assert run_config(composed("evaluate", "checkpoint=x"), made, ()).data.root == "/old/hymenoptera_data"


def test_unknown_keys_of_a_checkpoint_are_ignored() -> None:
    made = OmegaConf.to_container(composed("train"), resolve=True)
    made["data"]["something_newer"] = 1
    del made["data"]["fold"]
    assert (
        run_config(composed("evaluate", "checkpoint=x"), made, ()).data._target_
        == "graft.data.sources.hymenoptera.load"
    )


def test_data_changed_since_the_run_are_reported() -> None:
    splits = load_splits("digits", root=None, seed=0)
    assert notes_on_changed_data(splits, {"data": {"fingerprint": splits.fingerprint()}}) == []
    assert notes_on_changed_data(splits, {}) == []
    assert "not those of the run" in notes_on_changed_data(splits, {"data": {"fingerprint": "0" * 64}})[0]


def test_a_run_folder_means_its_best_checkpoint(digits_run: Path, tmp_path: Path) -> None:
    best = digits_run / "checkpoints" / "best.ckpt"
    assert checkpoint_file(str(digits_run)) == checkpoint_file(str(best)) == best
    with pytest.raises(TrainingError, match=str(tmp_path)):
        checkpoint_file(str(tmp_path))


@pytest.mark.parametrize("content", ["[1]", "{", '{"data": []}', '{"data": {"fingerprint": 3}}', "[" * 10**5])
def test_an_invalid_summary_is_ignored(content: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(content)
    assert summary_next_to(tmp_path / "checkpoints" / "best.ckpt") == {}
