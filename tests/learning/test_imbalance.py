"""Losses and class weights for classes of unequal size, against loops over the formulas of their papers."""

import math

import pytest
import torch
from one_training_step import ONE_STEP, composed, run_one_step
from torch.nn import functional as F

from graft.config.schema import LossConfig
from graft.errors import ConfigError
from graft.learning.imbalance import FocalLoss, LogitAdjustedLoss, balanced_weights, effective_number_weights
from graft.learning.losses import build_loss

COUNTS = (50, 20, 4)
DRAW = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(12, 3, generator=DRAW)
LABELS = torch.randint(3, (12,), generator=DRAW)
MIXED = torch.rand(12, 3, generator=DRAW).softmax(1)
WEIGHT = torch.tensor([0.5, 1.0, 3.0])


def test_focal_loss_equals_a_loop_over_its_formula() -> None:
    total = 0.0
    for logits, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        p = math.exp(logits[label]) / sum(map(math.exp, logits))
        total += -((1 - p) ** 1.5) * math.log(p)
    assert float(FocalLoss(gamma=1.5)(LOGITS, LABELS)) == pytest.approx(total / 12, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["indices", "mixed"])
def test_focal_loss_without_gamma_is_cross_entropy(
    targets: torch.Tensor, weight: torch.Tensor | None, smoothing: float
) -> None:
    expected = F.cross_entropy(LOGITS, targets, weight=weight, label_smoothing=smoothing)
    got = FocalLoss(gamma=0, weight=weight, label_smoothing=smoothing)(LOGITS, targets)
    torch.testing.assert_close(got, expected)


def test_focal_loss_has_finite_gradients_at_certain_predictions() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    FocalLoss(gamma=0.5)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_logit_adjusted_loss_equals_a_loop_over_its_formula() -> None:
    total = 0.0
    for logits, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        shifted = [math.exp(logit) * (count / sum(COUNTS)) ** 0.7 for logit, count in zip(logits, COUNTS, strict=True)]
        total += -math.log(shifted[label] / sum(shifted))
    assert float(LogitAdjustedLoss(COUNTS, tau=0.7)(LOGITS, LABELS)) == pytest.approx(total / 12, rel=1e-5)
    mixed = LogitAdjustedLoss(COUNTS, tau=0, weight=WEIGHT, label_smoothing=0.1)(LOGITS, MIXED)
    torch.testing.assert_close(mixed, F.cross_entropy(LOGITS, MIXED, weight=WEIGHT, label_smoothing=0.1))


def test_effective_number_weights_equal_a_loop_over_their_formula() -> None:
    effective = [sum(0.9**step for step in range(count)) for count in COUNTS]  # 1 + beta + … + beta^(n - 1)
    inverse = [1 / each for each in effective]
    expected = [each * 3 / sum(inverse) for each in inverse]
    assert effective_number_weights(COUNTS, 0.9) == pytest.approx(expected)
    assert effective_number_weights(COUNTS, 0) == pytest.approx([1, 1, 1])
    balanced = balanced_weights(COUNTS)
    near = effective_number_weights(COUNTS, 1 - 1e-9)
    assert [each / near[0] for each in near] == pytest.approx([each / balanced[0] for each in balanced], rel=1e-5)


def test_a_class_without_training_images_has_finite_losses_and_weights() -> None:
    assert all(map(math.isfinite, (*balanced_weights((5, 0)), *effective_number_weights((5, 0), 0.999))))
    assert LogitAdjustedLoss((5, 0))(torch.zeros(1, 2), torch.tensor([1])).isfinite()


def test_class_counts_reach_a_loss_that_takes_them_unless_they_are_set() -> None:
    target = "graft.learning.imbalance.LogitAdjustedLoss"
    counted = build_loss(LossConfig(_target_=target), class_counts=lambda: COUNTS)
    assert float(counted(LOGITS, LABELS)) == float(LogitAdjustedLoss(COUNTS)(LOGITS, LABELS))  # type: ignore[arg-type]
    cfg = LossConfig(_target_="graft.learning.imbalance.FocalLoss")
    cfg.gamma = -1  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"loss\._target_=.*gamma=-1"):
        build_loss(cfg)


@pytest.mark.parametrize(
    "words",
    [
        ("loss=focal", "loss.class_weights=effective_number", "augment.mixup=0.4", "loss.label_smoothing=0.1"),
        ("loss=logit_adjusted", "augment.cutmix=1", "data.sampler=balanced"),
        ("loss.class_weights=effective_number", "loss.class_weights_beta=0.9"),
    ],
)
def test_an_option_trains_with_soft_targets(words: tuple[str, ...], tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    config = composed("data=digits", "model=vgg_mini", "strategy=scratch", "metrics=log_loss", *words, *ONE_STEP)
    result = run_one_step(config, tmp_path, monkeypatch)
    assert math.isfinite(result["metrics"]["val/loss"])
    assert any("make up for the sizes" in note for note in result["notes"]) == ("data.sampler=balanced" in words)
