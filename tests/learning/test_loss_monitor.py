"""NaN and exploding losses and out-of-memory errors are reported at once with advice."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import QUICK
from torch import Tensor

import graft
from graft.data.datasets import Batch
from graft.errors import ConfigError, TrainingError
from graft.learning.loss_monitor import LossMonitor
from graft.learning.module import TransferModule
from graft.system.gpu_memory import batch_that_fits

WORDS = (
    *QUICK, "model.batch_norm=true", "trainer.max_epochs=2", "trainer.limit_train_batches=4", "data.batch_size=8",
    "trainer.baseline=false", "review=none", "callbacks.progress=none",
)  # fmt: skip


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give (epoch, batch) pairs: what the network is trained on in these steps is NaN, and so are its activations,
    its BatchNorm statistics, its loss."""
    spoiled: set[tuple[int, int]] = set()
    prepared = TransferModule.prepared

    def spoiling(self: TransferModule, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        images, targets = prepared(self, batch, batch_idx)
        return (images * torch.nan if (self.current_epoch, batch_idx) in spoiled else images), targets

    monkeypatch.setattr(TransferModule, "prepared", spoiling)
    return spoiled.update


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "nan_batches.jsonl").read_text().splitlines()]


def test_a_nan_loss_ends_the_run_and_names_the_images(spoil: Any, tmp_path: Path) -> None:
    spoil([(1, 2)])
    with pytest.raises(TrainingError, match=r"train/loss is nan in epoch 2, batch 3: training diverged\.\n.*optimizer"):
        graft.train(*WORDS, folder=tmp_path)
    (entry,) = written(tmp_path)
    assert {**entry, "images": len(entry["images"])} == {"epoch": 1, "batch": 2, "loss": "nan", "images": 8}
    known = graft.compose(*WORDS).splits().train.names
    assert set(entry["images"]) <= set(known)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(values.isfinite().all() for values in kept.values()), "the weights from before are kept"


@pytest.mark.parametrize("words", [(), ("optimizer=adamw", "trainer.gradient_clip_val=1", "scheduler=none")])
def test_a_skipped_step_changes_no_bit(
    words: tuple[str, ...], spoil: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil([(0, 1), (1, 0), (1, 3)])
    states: list[dict[str, Tensor]] = []
    before_step = LossMonitor.before_step

    def noting(self: LossMonitor) -> None:
        module = self.module
        state = {name: values.clone() for name, values in module.network.state_dict().items()}
        for number, tensors in enumerate(module.trainer.optimizers[0].state.values()):
            state |= {f"{number} {name}": values.clone() for name, values in tensors.items() if torch.is_tensor(values)}
        states.append(state)
        before_step(self)

    monkeypatch.setattr(LossMonitor, "before_step", noting)
    run = graft.train(*WORDS, *words, "loss.on_nan=skip", folder=tmp_path)
    for step, (before, after) in enumerate(pairwise(states)):
        same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert same == (step in (1, 4)), step
    assert "3 steps were skipped, the loss was NaN or infinite" in " ".join(run.summary["notes"])
    assert [(entry["epoch"], entry["batch"]) for entry in written(tmp_path)] == [(0, 1), (1, 0), (1, 3)]
    assert all(value == value for value in run.metrics.values())


def test_skip_has_a_limit(spoil: Any, tmp_path: Path) -> None:
    spoil([(0, 0), (0, 1), (0, 3)])
    with pytest.raises(TrainingError, match=r"epoch 1, batch 4: more than loss\.nan_limit=2 steps"):
        graft.train(*WORDS, "loss.on_nan=skip", "loss.nan_limit=2", folder=tmp_path)
    assert len(written(tmp_path)) == 3


def test_an_exploding_loss_is_reported_before_it_is_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("trainer.log_every_n_steps=1", "scheduler=none", "optimizer.momentum=0", "model.batch_norm=false")
    steep = ("optimizer.lr=30", "trainer.gradient_clip_val=1", "trainer.limit_train_batches=20")
    run = graft.train(*WORDS, *words, *steep, "trainer.max_epochs=1", folder=tmp_path / "steep")
    warning = "train/loss rose from"
    assert capsys.readouterr().out.count(warning) == 1
    assert any(warning in note and "optimizer.lr" in note for note in run.summary["notes"])
    calm = graft.train(*WORDS, *words, "optimizer.lr=0.01", folder=tmp_path / "calm")
    assert warning not in capsys.readouterr().out + str(calm.summary["notes"])


@pytest.mark.parametrize(
    ("batch_size", "capacity", "fixed", "demanded", "fits"),
    [
        (64, 0, 0, 0, 32),  # nothing known: half
        (48, 0, 0, 0, 16),
        (64, 100, 20, 110, 32),  # a little too much: half again
        (64, 100, 20, 1300, 4),  # 20 an image, 80 left
        (64, 100, 20, 20 + 64 * 79, 1),
        (64, 100, 20, 20 + 64 * 81, None),
        (64, 100, 120, 130, None),  # the weights alone are too much
        (1, 0, 0, 0, None),
    ],
)
def test_the_suggested_batch_is_half_or_what_the_observed_memory_allows(
    batch_size: int, capacity: int, fixed: int, demanded: int, fits: int | None
) -> None:
    assert batch_that_fits(batch_size, capacity=capacity, fixed=fixed, demanded=demanded) == fits


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_out_of_memory_says_the_batch_to_try(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(self: TransferModule, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        raise error

    monkeypatch.setattr(TransferModule, "prepared", too_much)
    with pytest.raises(TrainingError) as raised:
        graft.train(*WORDS, "data.batch_size=48", folder=tmp_path)
    assert str(raised.value).startswith("data.batch_size=48: memory ran out (cpu: ")
    assert "Try data.batch_size=16; trainer.accumulate_grad_batches=3" in str(raised.value)


def test_other_errors_are_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: TransferModule, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(TransferModule, "prepared", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        graft.train(*WORDS, folder=tmp_path)


def test_an_unknown_value_of_on_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss\.on_nan=skp: unknown\. Did you mean skip\?"):
        graft.train(*WORDS, "loss.on_nan=skp", folder=tmp_path)
