"""A few batches of real photographs with real weights through the whole pipeline."""

from pathlib import Path

import pytest
from commands import succeeded, train

FEW = ("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=2",
       "trainer.limit_test_batches=2", "logger.tensorboard=false", "data.batch_size=4")  # fmt: skip


def snapshot(folder: Path) -> set[tuple[str, int, int]]:
    return {(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in folder.rglob("*")}


@pytest.mark.parametrize(
    ("data", "counts"), {"hymenoptera": (244, 153, 153), "flowers": (2816, 314, 540), "mask": (959, 322, 322)}.items()
)
def test_each_data_set_trains_and_is_unchanged(
    data: str, counts: tuple[int, ...], shared_data: Path, tmp_path: Path
) -> None:
    before = snapshot(shared_data)
    run = succeeded(
        train(tmp_path / "run", "model=alexnet", "strategy=scratch", f"data={data}", f"paths.data={shared_data}", *FEW)
    )
    found = run.summary["data"]["counts"]
    assert tuple(sum(found[split].values()) for split in ("train", "val", "test")) == counts
    assert any("serve" in note for note in run.summary["notes"]) == (data != "flowers")
    assert snapshot(shared_data) == before


def test_weights_of_the_convolutions_only_are_accepted_and_random_layers_are_reported(
    shared_data: Path, shared_weights: Path, tmp_path: Path
) -> None:
    run = succeeded(
        train(
            tmp_path / "run",
            "model=vgg16",
            "strategy=feature_extract",
            "data=hymenoptera",
            *FEW,
            f"model.weights={shared_weights}/vgg16-features.safetensors",
            f"paths.data={shared_data}",
            "trainer.baseline=false",
            "trainer.test=false",
            "trainer.limit_train_batches=1",
        )
    )
    assert "stay random" in run.out
    assert "frozen although random" in run.out, "freeze=backbone keeps the two random linear layers frozen"
    assert "classifier.0.weight" in run.summary["weights"]["random"]


def test_pretrained_squeezenet_is_finetuned(shared_data: Path, shared_weights: Path, tmp_path: Path) -> None:
    run = succeeded(
        train(
            tmp_path / "run",
            "model=squeezenet1_1",
            "data=hymenoptera",
            f"paths.data={shared_data}",
            *FEW,
            f"model.weights={shared_weights}/squeezenet1_1-imagenet.safetensors",
        )
    )
    assert run.summary["weights"]["random"] == ["classifier.1.weight", "classifier.1.bias"]
