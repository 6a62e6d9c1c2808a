"""The options of the group `metrics`: known answers, edge cases, refusals and direction."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from omegaconf import OmegaConf
from one_training_step import composed
from sklearn import metrics as sk
from sklearn.preprocessing import label_binarize
from torch import Tensor
from torchmetrics import Metric

from graft.config import conf_dir
from graft.config.metrics import direction, known_directions
from graft.config.registration import typed
from graft.config.schema import MetricsConfig, TrainConfig
from graft.data.sampler import PADDING
from graft.errors import ConfigError
from graft.learning import deferred
from graft.learning.callbacks.build import build_callbacks
from graft.learning.metrics import ConfiguredMetrics, build_metrics, check_metrics
from graft.sweep import hooks
from graft.tasks.checks import settle

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OPTIONS = sorted(file.stem for file in (conf_dir() / "metrics").glob("*.yaml") if file.stem != "none")


def configured(*names: str, overrides: Sequence[str] = ()) -> MetricsConfig:
    return typed(composed(f"metrics=[{','.join(names)}]", *overrides), TrainConfig).metrics


def measured(cfg: MetricsConfig, logits: Tensor, labels: Tensor, batch: int = 16) -> dict[str, float]:
    """The metrics of predictions that come in batches."""
    classes = logits.shape[1]
    metrics = ConfiguredMetrics(build_metrics(cfg, classes))
    for some in torch.arange(len(labels)).split(batch):
        metrics.update(logits[some], labels[some])
    real = labels[labels != PADDING]
    return metrics.compute([str(label) for label in range(classes)], torch.bincount(real, minlength=classes).tolist())


def predictions(classes: int, present: Sequence[int], count: int = 150) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and labels [N], among `present`, that a network which has learnt something might give."""
    draw = torch.Generator().manual_seed(classes)
    labels = torch.tensor(present)[torch.randint(len(present), (count,), generator=draw)]
    logits = torch.randn(count, classes, generator=draw) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return logits, labels


def expected(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """What scikit-learn, and for the calibration error a loop, gives for these predictions."""
    scores: Floats = logits.double().softmax(1).numpy()
    true: Ints = labels.numpy()
    count, predicted = scores.shape[1], scores.argmax(1)
    present = [label for label in range(count) if (true == label).any()]
    one_hot = label_binarize(true, classes=range(count)) if count > 2 else np.stack([1 - true, true], 1)
    gap = 0.0
    confidence = scores.max(1)
    for edge in range(15):
        inside = (confidence > edge / 15) & (confidence <= (edge + 1) / 15)
        if inside.any():
            gap += inside.mean() * abs(confidence[inside].mean() - (predicted == true)[inside].mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "accuracy": sk.accuracy_score(true, predicted),
            "top5": sk.top_k_accuracy_score(true, scores, k=5, labels=range(count)) if count > 5 else float("nan"),
            "f1": sk.f1_score(true, predicted, average="macro"),
            "f1_macro": sk.f1_score(true, predicted, average="macro"),
            "f1_weighted": sk.f1_score(true, predicted, average="weighted"),
            "balanced_accuracy": sk.balanced_accuracy_score(true, predicted),
            "auroc": np.mean([sk.roc_auc_score(one_hot[:, label], scores[:, label]) for label in present]),
            "average_precision": np.mean(
                [sk.average_precision_score(one_hot[:, label], scores[:, label]) for label in present]
            ),
            "kappa": sk.cohen_kappa_score(true, predicted),
            "quadratic_kappa": sk.cohen_kappa_score(true, predicted, weights="quadratic"),
            "mcc": sk.matthews_corrcoef(true, predicted),
            "ece": gap,
            "log_loss": sk.log_loss(true, scores, labels=range(count)),
        }


@pytest.mark.parametrize(
    ("classes", "present"), [(7, range(7)), (2, range(2)), (7, (0, 2, 5))], ids=["seven", "two", "without images"]
)
def test_every_option_equals_scikit_learn_in_any_batches(classes: int, present: Sequence[int]) -> None:
    logits, labels = predictions(classes, list(present))
    options = [name for name in OPTIONS if name != "top5" or classes > 5]
    answers = expected(logits, labels)
    padded = torch.cat([logits, torch.full((3, classes), 9.0)]), torch.cat([labels, torch.full((3,), PADDING)])
    got = measured(configured(*options), *padded)
    assert got == pytest.approx({name: answers[name] for name in options}, abs=1e-5)


def test_metrics_are_updated_once_in_blocks_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Metric):
        full_state_update = False

        def __init__(self) -> None:
            super().__init__()
            self.add_state("updates", torch.zeros(()), dist_reduce_fx="sum")

        def update(self, probabilities: Tensor, labels: Tensor) -> None:
            assert (labels != PADDING).all()
            self.updates += 1

        def compute(self) -> Tensor:
            return self.updates

    logits = torch.zeros(10, 4)
    metrics = ConfiguredMetrics({"updates": Counting()})
    for _ in range(20):
        metrics.update(logits, torch.zeros(10, dtype=torch.int64))
    assert metrics.compute("abcd", [1] * 4) == {"updates": 1}
    metrics.reset()
    monkeypatch.setattr(deferred, "BLOCK", 5 * logits.nbytes)
    for _ in range(11):
        metrics.update(logits, torch.zeros(10, dtype=torch.int64))
    assert metrics.compute("abcd", [1] * 4) == {"updates": 3}


def test_an_argument_of_an_option_is_overridden_and_a_value_per_class_is_logged_for_classes_with_images() -> None:
    logits, labels = predictions(7, [0, 2, 5])
    cfg = configured("f1_macro", "top5", overrides=("metrics.f1_macro.average=none", "metrics.top5.top_k=2"))
    got = measured(cfg, logits, labels)
    assert set(got) == {"top5", "f1_macro/0", "f1_macro/2", "f1_macro/5"}
    assert got["top5"] == pytest.approx(sk.top_k_accuracy_score(labels, logits.softmax(1), k=2, labels=range(7)))


def test_a_metric_of_torchmetrics_with_a_task_needs_no_arguments() -> None:
    logits, labels = predictions(3, range(3))
    cfg = MetricsConfig.of({"wrapped": {"_target_": "torchmetrics.F1Score", "average": "macro"}})
    assert measured(cfg, logits, labels)["wrapped"] == pytest.approx(expected(logits, labels)["f1_macro"])


@pytest.mark.parametrize(
    ("node", "reasons"),
    [
        ({"_target_": "torchmetrics.classification.MulticlassAccuracy", "top_k": 5}, ["top_k", "5 and 3"]),
        ({"_target_": "torchmetrics.classification.BinaryAUROC"}, ["3 classes", "Use a metric of several classes"]),
        ({"_target_": "torchmetrics.classification.MulticlassConfusionMatrix"}, ["(3, 3)", "one number"]),
        ({"_target_": "torchmetrics.classification.MulticlassROC"}, ["tuple", "one number"]),
        ({"_target_": "graft.learning.classification.AUROC", "average": "micro"}, ["average=micro", "macro"]),
    ],
)
def test_a_metric_that_cannot_be_measured_is_refused_before_training(
    node: dict[str, object], reasons: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.mine\._target_") as refused:
        build_metrics(MetricsConfig.of({"mine": node}), 3)
    assert all(reason in str(refused.value) for reason in reasons)


def test_a_metric_without_a_value_on_the_images_is_noted_and_refused_as_the_optimized_one() -> None:
    metrics = build_metrics(configured("auroc", "f1_macro"), 3)
    present = {"val": [1], "test": [0, 1]}
    (note,) = check_metrics(metrics, present, 3, {"optimized_metric": "val/f1_macro"})
    assert note == "val/auroc is undefined, because only 1 of 3 classes have val images"
    with pytest.raises(ConfigError, match=r"optimized_metric=val/auroc: undefined.*only 1 of 3"):
        check_metrics(metrics, present, 3, {"optimized_metric": "val/auroc"})
    per_class = build_metrics(configured("auroc", overrides=("metrics.auroc.average=none",)), 3)
    with pytest.raises(ConfigError, match=r"a value for each class(.|\n)*metrics\.auroc\.average=macro"):
        check_metrics(per_class, {"val": [0, 1, 2]}, 3, {"optimized_metric": "val/auroc"})


LOWER = {"ece", "log_loss"}


def test_every_option_improves_in_the_direction_of_its_class() -> None:
    known = known_directions(configured(*OPTIONS).parts())
    assert {name for name in OPTIONS if direction(f"val/{name}", known) == "min"} == LOWER
    assert (direction("val/loss", {}), direction("val/acc", {}), direction("test/acc/loss", {})) == (
        "min",
        "max",
        "max",
    )


@pytest.mark.parametrize(
    ("target", "higher"),
    [
        ("torchmetrics.CalibrationError", False),  # a wrapper
        ("torchmetrics.classification.MulticlassHammingDistance", False),
        ("torchmetrics.classification.MulticlassStatScores", None),  # inherited from no class
        ("no_such_package.Metric", None),
    ],
)
def test_the_direction_of_a_class_is_read_from_its_source(target: str, higher: bool | None) -> None:
    assert known_directions({"mine": {"_target_": target}}).get("mine") is higher
    assert known_directions({"mine": {"_target_": target, "higher_is_better": True}}) == {"mine": True}


MINE = "+metrics.mine._target_=torchmetrics.classification.MulticlassStatScores"


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (["optimized_metric=val/f1_weighted"], ["not measured", "To measure it: metrics=f1_weighted"]),
        (["metrics=auroc", "optimized_metric=val/ece"], ["not measured", "To measure it: metrics=[auroc,ece]"]),
        (["metrics=auroc", "optimized_metric=val/aurocc"], ["Did you mean val/auroc?"]),
        (["metrics=auroc", "scheduler=plateau", "scheduler.monitor=test/auroc"], ["Did you mean val/auroc?"]),
        (["metrics.acc._target_=torchmetrics.classification.MulticlassAccuracy"], ["metrics.acc", "another name"]),
        ([MINE, "optimized_metric=val/mine"], ["larger or a smaller", "metrics.mine.higher_is_better=true or false"]),
        ([MINE, "metrics.mine.higher_is_better=2"], ["metrics.mine.higher_is_better=2", "true or false"]),
    ],
)
def test_an_impossible_choice_is_refused_by_the_configuration_alone(words: list[str], reasons: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        settle(composed("data=digits", "model=vgg_mini", "strategy=scratch", *words))
    assert all(reason in str(refused.value) for reason in reasons), refused.value


def test_the_direction_reaches_checkpoints_early_stopping_plateau_and_the_search(tmp_path: Path) -> None:
    hooks.register()
    words = ("data=digits", "model=vgg_mini", "strategy=scratch", "metrics=[ece,f1_macro]", "scheduler=plateau")
    for metric, mode in {"val/ece": "min", "val/f1_macro": "max"}.items():
        chosen = (f"optimized_metric={metric}", f"scheduler.monitor={metric}", "callbacks.early_stopping=2")
        composition = composed(*words, *chosen)
        cfg = typed(composition, TrainConfig)
        callbacks = build_callbacks(cfg, tmp_path, logging.getLogger())
        choosing = [each for each in callbacks if getattr(each, "monitor", None) == metric]
        assert [each.mode for each in choosing] == [mode, mode], "best checkpoint and early stopping"
        search = {"metrics": composition.metrics, "direction": f"${{direction:{metric}}}"}
        assert OmegaConf.create(search).direction == f"{mode}imize"
