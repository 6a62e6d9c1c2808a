"""Errors for operations that a device cannot repeat."""

from pathlib import Path

import pytest
import torch
from one_training_step import ONE_STEP, composed, run_one_step

from graft.errors import TrainingError
from graft.system.device import explaining_nondeterminism


def test_a_nondeterministic_operation_is_named_with_a_way_out() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(TrainingError) as raised, explaining_nondeterminism():
            torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert str(raised.value).startswith("trainer.deterministic=true: PyTorch has no deterministic put_")
    assert "trainer.deterministic=warn" in str(raised.value)


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(RuntimeError, match="shape"), explaining_nondeterminism():
        raise RuntimeError("shape mismatch")


def test_cudnn_benchmarks_unless_the_run_must_be_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("data=digits", "model=vgg_mini", "strategy=scratch", *ONE_STEP)
    chosen = {}
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for word in (
        "trainer.benchmark=true",
        "trainer.benchmark=false",
        "trainer.deterministic=true",
        "trainer.max_epochs=1",
    ):
        run_one_step(composed(*words, word), tmp_path, monkeypatch)
        chosen[word] = torch.backends.cudnn.benchmark
        torch.use_deterministic_algorithms(False)
    assert chosen == {
        "trainer.benchmark=true": True, "trainer.benchmark=false": False, "trainer.deterministic=true": False,
        "trainer.max_epochs=1": False,
    }  # fmt: skip
