"""A resumed run equals an uninterrupted one: weights, metrics, predictions and TensorBoard pictures."""

from pathlib import Path
from signal import SIGKILL

import pytest
import torch
from commands import SMALL, Finished, signal_after_first_checkpoint, succeeded, train, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STRATEGIES: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "finetune": ("strategy=finetune",),
    "feature_extract": ("strategy=feature_extract", "cache=features"),
    "gradual": ("strategy=gradual", "cache=features"),
    "adamw, onecycle, averaged, mixed": (
        "strategy=finetune", "optimizer=adamw", "scheduler=onecycle", "callbacks.ema=0.9", "augment.mixup=0.5",
    ),
    "balanced, focal, metrics": (
        "strategy=finetune", "data.sampler=balanced", "loss=focal", "metrics=[ece,auroc]", "optimized_metric=val/ece",
    ),
    "schedule-free, sharpness-aware, L2-SP": (
        "strategy=finetune", "optimizer=schedule_free", "optimizer.sam_rho=0.05", "scheduler=none",
        "strategy.l2_sp=0.1",
    ),
    "plateau, early stopping": (
        "strategy=finetune", "scheduler=plateau", "scheduler.patience=0",
        "callbacks.early_stopping=3",
    ),
}  # fmt: skip


ALWAYS = ("feature_extract", "gradual", "adamw, onecycle, averaged, mixed",
          "schedule-free, sharpness-aware, L2-SP")  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name: str, pretrained: Path, tmp_path: Path) -> None:
    small = [word for word in SMALL if not word.startswith("logger.")]
    overrides = [*small, "model.batch_norm=true", *STRATEGIES[name]]
    if not any(word.startswith("scheduler=") for word in overrides):
        overrides += ["scheduler=step", "scheduler.step_size=1"]
    overrides += ["trainer.limit_train_batches=6", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
    overrides += ["logger=[tensorboard,csv]"]
    overrides += [f"model.weights={pretrained}"] if name != "scratch" else []
    overrides += ["trainer.max_epochs=4"]
    whole = succeeded(train(tmp_path / "whole", *overrides))
    code, _ = signal_after_first_checkpoint(tmp_path / "part", SIGKILL, *overrides)
    assert code == -SIGKILL, "it ended before it could be killed"
    resumed = succeeded(train(tmp_path / "part", *overrides, "resume=auto"))
    for kind in ("last", "best"):
        expected, got = weights(whole, kind), weights(resumed, kind)
        assert [key for key in expected if not torch.equal(expected[key], got[key])] == []
    assert (resumed.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    assert resumed.summary["metrics"] == whole.summary["metrics"]
    assert resumed.summary["epochs"] == whole.summary["epochs"]
    assert (resumed.folder / "review.npz").read_bytes() == (whole.folder / "review.npz").read_bytes()
    assert tensorboard_events(resumed) == tensorboard_events(whole), "each step once, and the same pictures"


def tensorboard_events(run: Finished) -> dict[str, list[tuple[int, object]]]:
    events = EventAccumulator(str(run.folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    found: dict[str, list[tuple[int, object]]] = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if "time/" not in tag
    }
    images = events.Tags()["images"]
    assert len(images) >= 8
    return found | {tag: [(image.step, image.encoded_image_string) for image in events.Images(tag)] for tag in images}
