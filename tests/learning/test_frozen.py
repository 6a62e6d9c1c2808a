"""Frozen layers do not change in training, and stages are unfrozen in the configured epoch."""

from pathlib import Path

import pytest
import torch
from commands import SMALL, Finished, succeeded, train, weights

FROZEN = {
    "backbone": ("features.", "classifier.0.", "classifier.3."),
    "features": ("features.",),
    "custom": ("features.0.", "features.1."),
}


@pytest.mark.parametrize("policy", FROZEN)
def test_frozen_tensors_and_batchnorm_buffers_are_bit_identical_after_training(
    policy: str, pretrained: Path, tmp_path: Path
) -> None:
    run = succeeded(
        train(
            tmp_path / "run",
            *SMALL,
            "model.batch_norm=true",
            "strategy=feature_extract",
            f"freeze={policy}",
            *(["freeze.patterns=[features.0,features.1]"] if policy == "custom" else []),
            f"model.weights={pretrained}",
            "trainer.max_epochs=2",
            "optimizer.weight_decay=0.1",
            "callbacks.ema=0.9",
            "trainer.val_check_interval=4",
            "trainer.limit_train_batches=6",
            "trainer.limit_val_batches=2",
            "trainer.limit_test_batches=2",
            "data.num_workers=0",
        )
    )
    before = torch.load(pretrained, weights_only=True)["state_dict"]
    after, state = weights(run), torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    frozen = [name for name in before if name.removeprefix("network.").startswith(FROZEN[policy])]
    assert any("running_var" in name for name in frozen)
    for tensors in (after, state["state_dict"], weights(run, "best")):  # trained, averaged, best
        assert [name for name in frozen if not torch.equal(before[name], tensors[name])] == []
    moved = [name for name in before if name not in frozen and "num_batches" not in name]
    assert all(not torch.equal(before[name], after[name]) for name in moved)
    with_state = sum(len(values) > 0 for values in state["optimizer_states"][0]["state"].values())
    parameters = [name for name in moved if "running" not in name]
    assert with_state == len(parameters), "optimizer state for trained parameters only"


def test_gradual_unfreezing_trains_each_group_from_its_epoch_on(pretrained: Path, tmp_path: Path) -> None:
    overrides = (
        *SMALL,
        "model.batch_norm=true",
        "strategy=gradual",
        "strategy.batch_norm_statistics=update",
        f"model.weights={pretrained}",
        "trainer.limit_train_batches=3",
        "trainer.limit_val_batches=1",
        "trainer.limit_test_batches=1",
        "trainer.baseline=false",
        "data.num_workers=0",
    )
    before = torch.load(pretrained, weights_only=True)["state_dict"]

    def trained_groups(epochs: int) -> set[str]:
        after = weights(succeeded(train(tmp_path / str(epochs), *overrides, f"trainer.max_epochs={epochs}")))
        names = {name.removeprefix("network.") for name in before if not torch.equal(before[name], after[name])}
        return {"head" if name.startswith("classifier.6") else name.split(".")[0] for name in names}

    assert trained_groups(1) == {"head"}
    assert trained_groups(2) == {"head", "classifier"}
    assert trained_groups(3) == {"head", "classifier", "features"}
    third = weights(Finished(0, "", "", tmp_path / "3"))
    for statistic in ("running_mean", "num_batches_tracked"):
        name = f"network.features.1.{statistic}"
        assert not torch.equal(before[name], third[name]), "BatchNorm is unfrozen with its stage"
