"""data.batch_size=auto finds the largest batch that fits, logs it and keeps it when resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import succeeded, train
from one_training_step import composed

from graft.errors import ConfigError, TrainingError
from graft.system.device import Device
from graft.tasks import batch_size as batch
from graft.tasks.build import assemble
from graft.tasks.checks import settle
from graft.tasks.data import open_data

DIGITS = ("model=vgg_mini", "strategy=finetune", "model.weights=bundled", "data=digits", "data.batch_size=auto")


@pytest.mark.parametrize(("most_that_fit", "found"), [(100, 64), (64, 64), (1, 1), (0, None), (9999, 128)])
def test_batch_sizes_are_tried_in_ascending_order_and_only_once(most_that_fit: int, found: int | None) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= most_that_fit

    assert batch.largest(fits, 1, 200) == found
    assert tried == sorted(set(tried))
    assert len([size for size in tried if size > most_that_fit]) <= 1


def opened(*words: str) -> tuple[dict[str, Any], Any]:
    config = settle(composed(*DIGITS, *words))
    return config, open_data(config)


def test_a_step_out_of_memory_does_not_fit_and_leaves_the_network_unchanged(tmp_path: Path) -> None:
    config, splits = opened()
    config.data.batch_size = 2
    module = assemble(config, splits, tmp_path).module
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def too_many(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    module.network.register_forward_pre_hook(too_many)
    assert batch.largest(batch.step_fits(module, torch.device("cpu"), "bf16-mixed", 0), 2, 512) == 16
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_memory_that_a_run_keeps_between_its_steps_is_counted(tmp_path: Path) -> None:
    config, splits = opened("augment=none")
    config.data.batch_size = 2
    bare = batch.reserved_bytes(config, assemble(config, splits, tmp_path))
    assert bare == 1797 * 3 * 32**2, "all digits, decoded"
    config.callbacks.ema = 0.99
    experiment = assemble(config, splits, tmp_path)
    weights = sum(tensor.nbytes for tensor in experiment.module.network.state_dict().values())
    assert batch.reserved_bytes(config, experiment) == bare + weights
    config.data.resident_gb = 0
    assert batch.reserved_bytes(config, assemble(config, splits, tmp_path)) == weights


def test_the_batch_size_is_found_on_a_gpu_and_refused_with_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, splits = opened()
    gpu = Device("gpu", 1, "bf16-mixed")
    monkeypatch.setattr(batch, "step_fits", lambda *_: lambda size: size <= 300)
    settled, note = batch.resolve_batch_size(config, splits, gpu, tmp_path, None)
    assert (settled.data.batch_size, note) == (256, "data.batch_size=auto: 256 images fit")
    assert config.data.batch_size == "auto"
    monkeypatch.setattr(batch, "step_fits", lambda *_: lambda size: False)
    with pytest.raises(TrainingError, match="not even 2 images fit"):
        batch.resolve_batch_size(config, splits, gpu, tmp_path, None)
    config.trainer.strategy = "ddp"
    with pytest.raises(ConfigError, match="found for one process"):
        batch.resolve_batch_size(config, splits, gpu, tmp_path, None)


def test_without_a_gpu_the_default_is_logged_and_kept_when_resuming(tmp_path: Path) -> None:
    short = (*DIGITS, "trainer=cpu", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "review=none")
    first = succeeded(train(tmp_path / "run", *short, "trainer.max_epochs=1"))
    assert "data.batch_size=auto: 32, because there is no GPU" in first.out + first.err
    assert any("data.batch_size=auto: 32" in note for note in first.summary["notes"])
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["graft"]["config"]
    assert kept["data"]["batch_size"] == 32
    again = succeeded(train(tmp_path / "run", *short, "trainer.max_epochs=2", "resume=auto"))
    assert "data.batch_size=auto: 32, as before" in again.out + again.err
    wrong = train(tmp_path / "wrong", *DIGITS[:-1], "data.batch_size=atuo")
    assert wrong.code == 1
    assert "Did you mean auto?" in wrong.err
