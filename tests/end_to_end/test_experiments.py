"""Every preset composes and passes one training, validation and test step; what its comment says is what it does."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from graft.config import conf_dir
from graft.config.schema import register
from graft.config.validation import settle
from graft.learning.device import Device
from graft.models.recipe import Recipe
from graft.models.weights import WeightsReport
from graft.tasks import fit
from graft.tasks.train import open_data

EXPERIMENTS = sorted({file.stem for file in (conf_dir() / "experiment").glob("*.yaml")} - {"imagenet_predict"})
NETWORKS = ("resnet18", "alexnet", "vgg11_bn", "squeezenet1_0", "densenet121", "inception_v3")

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LAYOUTS = {
    "hymenoptera": [f"{part}/{name}" for part in ("train", "val") for name in ("ants", "bees")],
    "flowers": [f"{part}/{name}" for part in ("train", "test") for name in ("daisy", "roses", "tulips")],
    "cifar10": [f"cifar10/{part}/{name}" for part in ("train", "test") for name in CIFAR],
}
FOLDERS = {"hymenoptera": "hymenoptera_data", "flowers": "flower_photos", "cifar10": "", "mask": "mask"}


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets in their usual layout, a few noisy pictures each."""
    root, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(content, "JPEG")
        path.write_bytes(content.getvalue())

    for name, folders in LAYOUTS.items():
        for folder in folders:
            for number in range(4):
                picture(root / FOLDERS[name] / folder / f"{number}.jpg")
    for person in ("000001_male_Asian_25", "001001_female_Asian_31"):
        for worn in ("normal", "mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask"):
            picture(root / "mask" / person / f"{worn}.jpg")
    return root


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose("train", list(overrides))


def as_if_loaded(network: nn.Module, recipe: Recipe, weights: str | None, **_: Any) -> WeightsReport:
    """ImageNet's weights are not here: the random ones pass for them."""
    names = tuple(name for name, _ in network.named_parameters())
    return WeightsReport("random", None, names, (), None, None)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_preset_trains_validates_and_tests(
    experiment: str, small_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "load_weights", as_if_loaded)
    config = composed(f"experiment={experiment}", f"paths.data={small_sets}", *ONE_STEP)
    if config.strategy.pretrained and config.model.weights is None:
        config.model.weights = "bundled"
    settle(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    result = fit.one_process(plain, open_data(config), Device("cpu", 1, "bf16-mixed"), tmp_path)
    assert {"train/loss", "val/acc", "test/acc", "test/loss"} <= result["metrics"].keys()
    assert all(np.isfinite(value) for name, value in result["metrics"].items() if name.endswith("loss"))
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    json.dumps(saved["graft"]["config"])


ONE_STEP = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
            "trainer.limit_test_batches=1", "trainer.val_check_interval=null", "trainer.baseline=false",
            "trainer.log_every_n_steps=1", "data.batch_size=2", "data.shots=null", "data.num_workers=0",
            "logger.tensorboard=false")  # fmt: skip


def test_all_six_networks_have_all_three_strategies() -> None:
    wanted = {f"hymenoptera_{net}_{how}" for net in NETWORKS for how in ("feature_extract", "finetune", "scratch")}
    assert wanted <= set(EXPERIMENTS)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_tutorial_s_settings(network: str) -> None:
    config = composed(f"experiment=hymenoptera_{network}_finetune")
    assert config.model.name == network
    assert (config.data.batch_size, config.trainer.max_epochs) == (8, 15)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.momentum) == ("sgd", 0.001, 0.9)
    assert (config.optimizer.weight_decay, config.scheduler.name) == (0.0, "none")
    assert set(config.strategy.lr_multipliers.values()) == {1.0}
    assert config.data.preprocess.resize_size == (299 if network == "inception_v3" else 224)
    assert composed(f"experiment=hymenoptera_{network}_feature_extract").freeze.policy == "backbone"


def test_a_learning_rate_per_layer_group() -> None:
    config = composed("experiment=hymenoptera_vgg16_discriminative")
    rates = {name: factor * config.optimizer.lr for name, factor in config.strategy.lr_multipliers.items()}
    assert rates == pytest.approx({"features": 1e-4, "classifier": 5e-4, "head": 1e-3})
