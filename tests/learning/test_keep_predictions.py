"""Predictions kept from validation and test passes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graft.data.datasets import Batch
from graft.learning.callbacks import keep_predictions as module
from graft.learning.callbacks.keep_predictions import KeepPredictions
from graft.learning.decisions import ONE_CLASS


def a_trainer(step: int = 5, acc: float = 0.5, batches: int = 2) -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        global_step=step,
        current_epoch=1,
        num_val_batches=[batches],
        num_test_batches=[batches],
        world_size=1,
        callback_metrics={"val/acc": torch.tensor(acc)},
    )


MODULE: Any = SimpleNamespace(network=nn.ModuleDict({"head": nn.Linear(4, 3)}), decisions=ONE_CLASS)


def validate(
    keep: KeepPredictions, trainer: Any, batches: list[Batch], head: nn.Module = MODULE.network["head"]
) -> None:
    keep.on_validation_epoch_start(trainer, MODULE)
    for number, batch in enumerate(batches):
        keep.on_validation_batch_end(trainer, MODULE, head(batch.images), batch, number)
    keep.on_validation_end(trainer, MODULE)


def a_batch(indices: list[int]) -> Batch:
    places = torch.tensor(indices)
    return Batch(torch.randn(len(indices), 4), torch.where(places < 0, -1, places % 3), places)


def test_every_image_is_kept_once_in_order_and_no_hook_remains() -> None:
    keep = KeepPredictions(monitor="val/acc", head="head", scores=2, features=100)
    batches = [a_batch([3, 0, 4]), a_batch([2, 1, -1])]
    validate(keep, a_trainer(), batches)
    best = keep.best
    assert best is not None
    assert best.indices.tolist() == best.feature_indices.tolist() == [0, 1, 2, 3, 4]
    assert best.labels.tolist() == [0, 1, 2, 0, 1]
    logits = MODULE.network["head"](torch.cat([batch.images for batch in batches]))[[1, 4, 3, 0, 2]]
    expected = logits.softmax(1).detach().numpy()
    np.testing.assert_allclose(best.confidence, expected.max(1), atol=1e-6)
    np.testing.assert_allclose(best.truth, expected[range(5), best.labels], atol=1e-6)
    np.testing.assert_allclose(best.scores, expected[:, :2], atol=1e-3)
    np.testing.assert_allclose(best.features[1], batches[1].images[1].numpy(), atol=1e-3)
    assert not MODULE.network["head"]._forward_pre_hooks


def test_the_best_validation_is_kept_as_the_best_checkpoint_is() -> None:
    keep = KeepPredictions(monitor="val/acc", head=None, scores=0, features=0)
    for step, acc in enumerate([float("nan"), 0.5, 0.4, 0.5, 0.6, float("nan")]):
        validate(keep, a_trainer(step, acc), [a_batch([0, 1])])
        assert keep.best is not None
        assert keep.best.step == [0, 1, 1, 1, 4, 4][step]
    last = KeepPredictions(monitor=None, head=None, scores=0, features=0)
    for step in range(3):
        validate(last, a_trainer(step), [a_batch([0, 1])])
    assert last.best is not None
    assert last.best.step == 2


def test_a_validation_before_the_first_step_is_not_kept() -> None:
    keep = KeepPredictions(monitor="val/acc", head=None, scores=0, features=0)
    trainer = a_trainer(0)
    trainer.state.fn = "validate"
    validate(keep, trainer, [a_batch([0, 1])])
    assert keep.best is None
    assert keep.state_dict() == {}


def test_kept_predictions_are_restored_from_a_checkpoint(tmp_path: Any) -> None:
    keep = KeepPredictions(monitor="val/acc", head="head", scores=3, features=4)
    validate(keep, a_trainer(acc=0.7), [a_batch([0, 1, 2]), a_batch([3, 4, 5])])
    torch.save(keep.state_dict(), tmp_path / "state")
    again = KeepPredictions(monitor="val/acc", head="head", scores=3, features=4)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert keep.best is not None
    assert again.best is not None
    for name in ("step", "epoch", *module.TYPES):
        np.testing.assert_array_equal(getattr(again.best, name), getattr(keep.best, name), err_msg=name)
    validate(again, a_trainer(acc=0.6), [a_batch([0])])
    assert again.best.step == keep.best.step, "it remembers how good the best was"


def test_of_a_large_set_only_some_head_inputs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = KeepPredictions(monitor=None, head="head", scores=0, features=10)
    batches = [a_batch(list(range(start, start + 20))) for start in range(0, 100, 20)]
    validate(keep, a_trainer(batches=5), batches)
    assert keep.best is not None
    assert keep.best.feature_indices.tolist() == [0, 1, 20, 21, 40, 41, 60, 61, 80, 81]
    monkeypatch.setattr(module, "LARGEST", 20)  # five rows of four numbers
    validate(keep, a_trainer(batches=5), batches)
    assert len(keep.best.feature_indices) == 5


def test_a_diverged_network_has_zero_confidence() -> None:
    keep = KeepPredictions(monitor=None, head=None, scores=3, features=0)
    validate(keep, a_trainer(), [Batch(torch.full((2, 4), torch.nan), torch.tensor([0, 1]), torch.tensor([0, 1]))])
    assert keep.best is not None
    assert keep.best.confidence.tolist() == keep.best.truth.tolist() == [0, 0]
    assert keep.best.calibration().counts.sum() == 2


def test_a_feature_map_is_averaged_over_its_positions() -> None:
    assert module.flattened(torch.ones(2, 5, 3, 3)).shape == (2, 5)
    assert module.flattened(torch.ones(2, 5)).shape == (2, 5)
    assert module.flattened(torch.ones(2, 7, 5)).shape == (2, 35)
