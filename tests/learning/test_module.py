"""Effects of a run on a network's weights, and its warnings."""

import json
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from typing import Any

import pytest
import torch
from commands import QUICK, SMALL, TINY, Finished, signal_after_first_checkpoint, succeeded, train, weights


def test_averaged_weights_are_what_is_validated_kept_and_tested(tmp_path: Path) -> None:
    run = succeeded(
        train(
            tmp_path / "run",
            *SMALL,
            "data=faces",
            "data.shots=20",
            "callbacks.ema=0.9",
            "callbacks.checkpoint=last",
            "trainer.max_epochs=3",
            "data.batch_size=8",
            "data.num_workers=0",
            "model.batch_norm=true",
        )
    )
    best, last = (
        torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    )
    averaged, trained = last["state_dict"], last["current_model_state"]
    assert any(not torch.equal(averaged[key], trained[key]) for key in averaged)
    assert [key for key in averaged if not torch.equal(averaged[key], best["state_dict"][key])] == []
    metrics = run.summary["metrics"]
    assert metrics["test/loss"] == metrics["val/loss"], "validation is the test split here"


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_an_interrupted_run_logs_the_command_that_resumes_it(number: Signals, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out = signal_after_first_checkpoint(folder, number, *TINY, "trainer.max_epochs=5000", delay=0.2)
    assert code == 130
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert f"hydra.run.dir={folder} resume=auto" in out


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
def test_a_compiled_network_saves_clean_names(mode: str, tmp_path: Path) -> None:
    run = train(tmp_path / "run", *QUICK, f"trainer.compile={mode}", "trainer.limit_train_batches=1")
    if run.code:
        pytest.skip(f"torch.compile does not work here: {run.err[-200:]}")
    assert all("_orig_mod" not in name for name in weights(run))


def test_normalisation_equals_that_of_torchvision() -> None:
    from types import SimpleNamespace

    from torchvision.transforms import v2

    from graft.data.preprocessing import Preprocessing
    from graft.learning.module import Objective, TransferModule

    network: Any = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    plan: Any = SimpleNamespace(set_modes=lambda epoch: None)
    module = TransferModule(
        network, plan, classes=("a", "b"), preprocessing=Preprocessing(), objective=Objective(), optimizer=None,
        scheduler=None, seed=0, provenance={},
    )  # fmt: skip
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    to_float, normalise = (
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    )
    expected = v2.Compose([to_float, normalise])
    torch.testing.assert_close(module.normalise(images), expected(images))


def test_a_network_that_predicts_one_class_is_reported(pretrained_run: Finished, tmp_path: Path) -> None:
    weights = "loss.class_weights=[1000,1,1,1,1,1,1,1,1,1]"
    run = succeeded(train(tmp_path / "run", *TINY, weights, "optimizer.lr=0.1", "trainer.max_epochs=2"))
    warning = "every validation image is predicted as"
    assert run.out.count(warning) == 1
    assert any(warning in note for note in run.summary["notes"])
    assert warning not in pretrained_run.out
