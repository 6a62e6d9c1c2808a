"""What a run does to a network: frozen is frozen, resume is exact, processes agree."""

import json
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any

import pytest
import torch
from commands import QUICK, ROOT, Finished, command, signal_after_first_checkpoint, succeeded, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from graft.review.record import read_record

SMALL = (
    "model=vgg_custom", "model.table=[8,M,16,M]", "model.classifier=vgg", "model.input_size=32",
    "model.average_pool=2", "strategy=scratch", "data=digits", "augment=basic", "logger.tensorboard=false",
    "trainer.precision=32-true", "trainer.log_every_n_steps=1",
)  # fmt: skip


def weights(run: Finished, name: str = "last") -> dict[str, torch.Tensor]:
    content = torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content.get("current_model_state") or content["state_dict"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BatchNorm VGG with three linear layers that knows digits a little."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    succeeded(train(folder, *SMALL, "model.batch_norm=true", "trainer.max_epochs=1"))
    return folder / "checkpoints" / "best.ckpt"


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
            "trainer.val_check_interval=10",
            "trainer.limit_train_batches=12",
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


STRATEGIES: dict[str, tuple[str, ...]] = {
    "scratch": (),
    "finetune": ("strategy=finetune",),
    "feature_extract": ("strategy=feature_extract", "cache=features"),
    "gradual": ("strategy=gradual", "cache=features"),
    "adamw, onecycle, averaged, mixed": (
        "strategy=finetune", "optimizer=adamw", "scheduler=onecycle", "callbacks.ema=0.9", "augment.mixup=0.5",
    ),
    "plateau, early stopping": (
        "strategy=finetune", "scheduler=plateau", "scheduler.patience=0",
        "callbacks.early_stopping=3",
    ),
}  # fmt: skip


ALWAYS = ("feature_extract", "gradual", "adamw, onecycle, averaged, mixed")


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in STRATEGIES]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name: str, pretrained: Path, tmp_path: Path) -> None:
    small = [word for word in SMALL if not word.startswith("logger.")]
    overrides = [*small, "model.batch_norm=true", *STRATEGIES[name]]
    if not any(word.startswith("scheduler=") for word in overrides):
        overrides += ["scheduler=step", "scheduler.step_size=1"]
    overrides += ["trainer.limit_train_batches=6", "trainer.limit_val_batches=2", "logger=[tensorboard,csv]"]
    overrides += [f"model.weights={pretrained}"] if name != "scratch" else []
    overrides += ["trainer.max_epochs=5"]
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
    assert shown(resumed) == shown(whole), "TensorBoard shows every step once, and the same pictures"


def shown(run: Finished) -> dict[str, list[tuple[int, object]]]:
    events = EventAccumulator(str(run.folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    found: dict[str, list[tuple[int, object]]] = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("time/")
    }
    images = events.Tags()["images"]
    assert len(images) >= 8
    return found | {tag: [(image.step, image.encoded_image_string) for image in events.Images(tag)] for tag in images}


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_an_interrupted_run_logs_the_command_that_resumes_it(number: Signals, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out = signal_after_first_checkpoint(
        folder, number, *SMALL, "model.batch_norm=false", "trainer.max_epochs=500", delay=1
    )
    assert code == 130
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert f"hydra.run.dir={folder} resume=auto" in out


def test_gradual_unfreezing_trains_each_group_from_its_epoch_on(pretrained: Path, tmp_path: Path) -> None:
    overrides = (
        *SMALL,
        "model.batch_norm=true",
        "strategy=gradual",
        f"model.weights={pretrained}",
        "trainer.limit_train_batches=3",
        "trainer.limit_val_batches=1",
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


def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    common = (
        *SMALL,
        "model.batch_norm=false",
        "model.dropout=0",
        "trainer.max_epochs=1",
        "optimizer.lr=0.002",
        "optimizer.momentum=0",
        "trainer.accelerator=cpu",
    )
    one = succeeded(train(tmp_path / "one", *common, "data.batch_size=32"))
    two = succeeded(train(tmp_path / "two", "trainer=ddp", "trainer.devices=2", *common, "data.batch_size=16"))
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}, "one run folder each"
    assert {path.name for path in two.folder.iterdir()} == {path.name for path in one.folder.iterdir()}
    for name in ("val/loss", "val/acc", "test/loss"):
        assert two.summary["metrics"][name] == pytest.approx(one.summary["metrics"][name], abs=1e-4)
    seen, expected_seen = read_record(two.folder), read_record(one.folder)
    assert seen is not None
    assert expected_seen is not None
    assert seen.digests.tolist() == expected_seen.digests.tolist(), "each test image once, of all processes"
    assert seen.images == sum(two.summary["data"]["counts"]["test"].values())
    expected, got = weights(one), weights(two)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=1e-4)


def test_two_processes_unfreeze_gradually(pretrained: Path, tmp_path: Path) -> None:
    run = succeeded(
        train(
            tmp_path / "run",
            *SMALL,
            "trainer=ddp",
            "trainer.accelerator=cpu",
            "trainer.devices=2",
            "model.batch_norm=true",
            "strategy=gradual",
            f"model.weights={pretrained}",
            "trainer.max_epochs=3",
            "trainer.limit_train_batches=3",
            "trainer.limit_val_batches=2",
        )
    )
    before, after = torch.load(pretrained, weights_only=True)["state_dict"], weights(run)
    assert not torch.equal(before["network.features.0.weight"], after["network.features.0.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["true", "reduce-overhead"])
def test_a_compiled_network_saves_clean_names(mode: str, tmp_path: Path) -> None:
    run = train(tmp_path / "run", *QUICK, f"trainer.compile={mode}", "trainer.limit_train_batches=1")
    if run.code:
        pytest.skip(f"torch.compile does not work here: {run.err[-200:]}")
    assert all("_orig_mod" not in name for name in weights(run))


def test_a_sweep_of_multi_process_runs_writes_to_its_folders_only(tmp_path: Path) -> None:
    run = command(
        tmp_path / "run", str(ROOT / "train.py"), "-m", *SMALL, "model.batch_norm=false", "trainer=ddp",
        "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
        "seed=0,1", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    succeeded(run)
    folders = {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir() and path.name[0] != "."}
    assert folders == {"0", "1"}


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


def test_a_network_that_predicts_one_class_is_reported(tmp_path: Path) -> None:
    run = succeeded(
        train(tmp_path / "run", *SMALL, "loss.class_weights=[1000,1,1,1,1,1,1,1,1,1]", "trainer.max_epochs=2")
    )
    said = "every validation image is predicted as"
    assert run.out.count(said) == 1
    assert any(said in note for note in run.summary["notes"])
    quiet = succeeded(train(tmp_path / "quiet", *SMALL, "trainer.max_epochs=1"))
    assert said not in quiet.out
