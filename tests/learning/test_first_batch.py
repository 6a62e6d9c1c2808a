"""The first batch as the network receives it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from graft.data.datasets import Batch
from graft.data.feature_batches import FeatureBatch
from graft.data.preprocessing import Preprocessing
from graft.learning.callbacks.first_batch import FirstBatch
from graft.learning.module import Objective, TransferModule


def transfer_module(**objective: float) -> Any:
    network: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    plan: Any = SimpleNamespace(set_modes=lambda epoch: None)
    module = TransferModule(
        network, plan, classes=("a", "b"), preprocessing=Preprocessing(), objective=Objective(**objective),
        optimizer=None, scheduler=None, seed=0, provenance={},
    )  # fmt: skip
    module._trainer = A_TRAINER
    return module


A_TRAINER: Any = SimpleNamespace(global_step=0, current_epoch=0, is_global_zero=True, global_rank=0)
BATCH = Batch(torch.arange(3 * 3 * 8 * 8).reshape(3, 3, 8, 8).to(torch.uint8), torch.tensor([0, 1, 0]), torch.arange(3))


def shown(module: Any, batch: Any = BATCH, trainer: Any = A_TRAINER, number: int = 0) -> list[Any]:
    seen: list[Any] = []
    FirstBatch(2, lambda *arguments: seen.extend(arguments)).on_train_batch_start(trainer, module, batch, number)
    return seen


def test_normalisation_is_undone_to_the_byte() -> None:
    images, targets, indices = shown(transfer_module())
    assert torch.equal(images, BATCH.images[:2])
    assert targets.tolist() == indices == [0, 1]


def test_mixed_images_come_with_the_shares_of_their_classes() -> None:
    module = transfer_module(mixup=1.0)
    images, targets, _ = shown(module)
    expected, shares = module.prepared(BATCH, 0)
    assert torch.equal(targets, shares[:2])
    assert 0 < targets[1, 0] < 1
    torch.testing.assert_close(module.normalise(images), expected[:2], atol=0.01, rtol=0)  # half a grey level


@pytest.mark.parametrize("later", [{"trainer": SimpleNamespace(global_step=9, is_global_zero=True)}, {"number": 1}])
def test_only_the_first_batch_of_the_run_is_shown(later: dict[str, Any]) -> None:
    assert shown(transfer_module(), **later) == []


def test_for_a_batch_of_features_the_original_images_are_shown() -> None:
    asked: list[Any] = []

    def training_images(epoch: int, indices: list[int]) -> torch.Tensor:
        asked.append((epoch, indices))
        return BATCH.images[:2]

    trainer = SimpleNamespace(**vars(A_TRAINER), datamodule=SimpleNamespace(training_images=training_images))
    labels, indices = torch.tensor([1, 1, 0]), torch.tensor([7, 4, 2])
    batch = FeatureBatch((torch.zeros(3, 5),), labels, indices, "head")
    images, targets, indices = shown(transfer_module(), batch, trainer)
    assert asked == [(0, [7, 4])]
    assert torch.equal(images, BATCH.images[:2])
    assert (targets.tolist(), indices) == ([1, 1], [7, 4])
