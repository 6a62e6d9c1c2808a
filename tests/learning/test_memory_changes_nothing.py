"""Weights do not depend on cached images or on the number of worker processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_training_step import composed
from PIL import Image

from graft.config.config_hash import config_hash
from graft.system.device import Device
from graft.tasks import fit
from graft.tasks.checks import settle
from graft.tasks.data import open_data


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 16 noisy pictures of many sizes."""
    folder, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(32):
        path = folder / ("ants", "bees")[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (30 + number, 70 - number, 3), dtype=np.uint8)).save(path)
    return folder


def trained(folder: Path, photos: Path, *words: str) -> tuple[str, dict[str, torch.Tensor]]:
    """(identity of the configuration, last weights) of two epochs."""
    config: Any = composed(
        "data=folder", f"data.root={photos}", "model=vgg_mini", "model.weights=bundled", "strategy=finetune",
        "data.batch_size=8", "trainer.max_epochs=2", "trainer.baseline=false", "trainer.test=false", "review=none",
        "logger.tensorboard=false", "callbacks.checkpoint=last", "optimizer.lr=0.1", *words,
    )  # fmt: skip
    config = settle(config)
    fit.one_process(config, open_data(config), Device("cpu", 1, "32-true"), fit.RunChoices({}, ()), folder)
    file = folder / "checkpoints" / "last.ckpt"
    return config_hash(config), torch.load(file, map_location="cpu", weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    "augment",
    [
        ("augment=basic", "augment.random_erasing=0.5"),
        ("augment=imagenet",),
        ("augment=none", "augment.color_jitter=0.4", "augment.policy=trivial"),
    ],
)
def test_memory_and_workers_change_no_weight(augment: tuple[str, ...], photos: Path, tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / f"{source}_{workers}", photos, *augment, *gigabytes, f"data.num_workers={workers}")
        for source, gigabytes in (("memory", ()), ("files", ("data.resident_gb=0",)))
        for workers in (0, 2)
    ]
    (name, expected), *others = runs
    for other_name, weights in others:
        assert other_name == name
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    _, unlike = trained(tmp_path / "seed", photos, *augment, "seed=1")
    assert not all(torch.equal(unlike[key], expected[key]) for key in expected), "nothing was trained"
