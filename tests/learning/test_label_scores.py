"""Scores, thresholds, losses and metrics of images with several labels, against scikit-learn and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F
from torchmetrics.classification import MultilabelAUROC

from graft.config.schema import LossConfig
from graft.errors import ConfigError
from graft.learning.decisions import EACH_LABEL, ONE_CLASS
from graft.learning.imbalance import balanced_positive_weights
from graft.learning.label_scores import LabelEvaluation, scores_of
from graft.learning.losses import build_loss, require_label_loss
from graft.learning.multi_label import AUROC, BinaryCrossEntropy, BinaryFocalLoss, LogLoss


def predictions(images: int = 80, labels: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities with ties, float64 [N, C], and labels [N, C]; some images have none."""
    draw = np.random.default_rng(seed)
    truth = draw.random((images, labels)) < 0.3
    scores = np.clip(draw.normal(0.4, 0.2, (images, labels)) + 0.2 * truth, 0.01, 0.99).round(2)
    return torch.from_numpy(scores), torch.from_numpy(truth)


def test_scores_are_those_of_scikit_learn() -> None:
    scores, truth = predictions()
    found = scores_of(scores, truth, (0.3, 0.4, 0.5, 0.6, 0.7))
    scores, truth = scores.numpy(), truth.numpy()
    decided = scores >= np.array([0.3, 0.4, 0.5, 0.6, 0.7])
    expected = {
        "map": sklearn_metrics.average_precision_score(truth, scores, average="macro"),
        "f1_micro": sklearn_metrics.f1_score(truth, decided, average="micro"),
        "f1_macro": sklearn_metrics.f1_score(truth, decided, average="macro"),
        "exact_match": sklearn_metrics.accuracy_score(truth, decided),
        "hamming_loss": sklearn_metrics.hamming_loss(truth, decided),
    }
    assert found.overall() == pytest.approx(expected, abs=1e-12)
    assert found.precision() == pytest.approx(sklearn_metrics.precision_score(truth, decided, average=None).tolist())
    assert found.recall() == pytest.approx(sklearn_metrics.recall_score(truth, decided, average=None).tolist())


def test_each_threshold_gives_its_label_the_highest_possible_f1() -> None:
    scores, truth = predictions(seed=3)
    found = scores_of(scores, truth)
    scores, truth = scores.numpy(), truth.numpy()
    for label, threshold in enumerate(found.thresholds):
        precision, recall, _ = sklearn_metrics.precision_recall_curve(truth[:, label], scores[:, label])
        possible = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        assert sklearn_metrics.f1_score(truth[:, label], scores[:, label] >= threshold) == pytest.approx(possible.max())


def test_a_label_of_no_image_or_of_all_keeps_the_threshold_one_half_and_counts_in_no_mean() -> None:
    scores, truth = predictions(labels=3)
    truth[:, 0], truth[:, 1] = False, True
    found = scores_of(scores, truth)
    assert found.thresholds[:2] == (0.5, 0.5)
    assert found.average_precision[0] is None
    assert found.average_precision[1] == 1
    assert found.map == pytest.approx((1 + float(found.average_precision[2] or 0)) / 2)
    nothing = scores_of(scores[:, :1] * 0, truth[:, :1])
    assert math.isnan(nothing.map)
    assert nothing.overall()["f1_micro"] == 0
    assert nothing.exact == len(scores)


def test_padding_counts_nowhere_and_the_gathered_shards_of_two_processes_score_like_one() -> None:
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    labels = (torch.rand(10, 3, generator=torch.Generator().manual_seed(1)) < 0.4).to(torch.int8)
    whole, *shards = (LabelEvaluation(3, torch.device("cpu")) for _ in range(3))
    whole.update(logits, labels, torch.tensor(1.0))
    for number, shard in enumerate(shards):
        shard.update(logits[number::2], labels[number::2], torch.tensor(0.5))
        shard.update(torch.full((2, 3), 9.0), torch.full((2, 3), -1, dtype=torch.int8), torch.tensor(0.0))
    kept: list[list[list[torch.Tensor]]] = []
    shards[0].compute(lambda sums: sums, lambda parts: (kept.append([parts]), torch.cat(parts))[1])

    def gather(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([*kept.pop(0)[0], *parts])

    found = shards[1].compute(lambda sums: 2 * sums, gather)
    expected = whole.compute(lambda sums: sums)
    assert (found.count, found.loss, found.thresholds) == (10, 1.0, expected.thresholds)
    assert found.overall() == expected.overall()


def test_equal_probabilities_for_all_images_are_a_collapse() -> None:
    _, truth = predictions()
    assert scores_of(torch.full(truth.shape, 0.3, dtype=torch.float64), truth).collapse(()) is not None
    assert scores_of(*predictions()).collapse(()) is None


def test_binary_cross_entropy_is_torchs_with_weights_smoothing_and_class_indices() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]]).float()
    weight, positive = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 1.0, 2.0])
    loss = BinaryCrossEntropy(weight, positive, label_smoothing=0.2)
    smooth = targets * 0.8 + 0.1
    expected = F.binary_cross_entropy_with_logits(logits, smooth, weight=weight, pos_weight=positive)
    assert torch.equal(loss(logits, targets), expected)
    indices = torch.tensor([2, 0, 1, 1, 0, 2])
    assert torch.equal(BinaryCrossEntropy()(logits, indices), BinaryCrossEntropy()(logits, F.one_hot(indices).float()))
    assert torch.equal(BinaryFocalLoss(0.0, weight)(logits, targets), BinaryCrossEntropy(weight)(logits, targets))
    distance = (targets - logits.sigmoid()).abs()
    focal = (distance**2 * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).mean()
    assert BinaryFocalLoss(2.0)(logits, targets) == pytest.approx(float(focal))
    assert balanced_positive_weights([10, 0, 40], 40) == (3.0, 40.0, 1 / 40)


def test_a_loss_of_one_class_per_image_is_refused_by_name() -> None:
    margin = build_loss(LossConfig(_target_="torch.nn.MultiMarginLoss"))
    with pytest.raises(ConfigError, match=r"loss\._target_=torch\.nn\.MultiMarginLoss: cannot be computed for images"):
        require_label_loss(margin, "torch.nn.MultiMarginLoss", 4)
    require_label_loss(build_loss(LossConfig(_target_="torch.nn.MultiLabelSoftMarginLoss")), "x", 4)


def test_metrics_skip_labels_without_images_and_log_loss_is_scikit_learns() -> None:
    scores, truth = predictions(labels=4)
    truth[:, 0] = False
    auroc, log_loss = AUROC(4), LogLoss()
    for half in (slice(0, 40), slice(40, 80)):
        for metric in (auroc, log_loss):
            metric.update(scores[half].float(), truth[half].long())
    reference = MultilabelAUROC(4, average="none")
    reference.update(scores.float(), truth.long())
    assert float(auroc.compute()) == pytest.approx(float(reference.compute()[1:].mean()))
    expected = np.mean([sklearn_metrics.log_loss(truth[:, i], scores[:, i], labels=[False, True]) for i in range(4)])
    assert float(log_loss.compute()) == pytest.approx(float(expected), rel=1e-5)


def test_the_logits_of_a_mean_give_the_mean_of_the_probabilities() -> None:
    logits = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) * 20 for seed in range(3)]
    for decisions in (ONE_CLASS, EACH_LABEL):
        mean = torch.stack([decisions.probabilities(each.double()) for each in logits]).mean(0)
        found = decisions.probabilities(decisions.logits_of_mean([each.double() for each in logits]))
        torch.testing.assert_close(found, mean)
        assert torch.equal(decisions.logits_of_mean(logits[:1]), logits[0])
