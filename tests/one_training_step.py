"""One training, validation and test step in this process, on a few noise images of every data set."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from graft.config import conf_dir
from graft.config.registration import register
from graft.models.recipe import Recipe
from graft.models.weights import WeightsReport, default_preprocessing
from graft.system.device import Device
from graft.tasks import build as assembly
from graft.tasks import fit
from graft.tasks.checks import settle
from graft.tasks.data import open_data

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LAYOUTS = {
    "hymenoptera_data": [f"{part}/{name}" for part in ("train", "val") for name in ("ants", "bees")],
    "flower_photos": [f"{part}/{name}" for part in ("train", "test") for name in ("daisy", "roses", "tulips")],
    "cifar10": [f"{part}/{name}" for part in ("train", "test") for name in CIFAR],
}
WORN = ("normal", "mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask")

ONE_STEP = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
            "trainer.limit_test_batches=1", "trainer.val_check_interval=null", "trainer.baseline=false",
            "trainer.log_every_n_steps=1", "data.batch_size=2", "data.num_workers=0", "logger.tensorboard=false",
            "review=none", "cache=none")  # fmt: skip

SMALL_VGG = {"table": [4, "M"] * 5, "classifier": "vgg", "average_pool": 1, "hidden": 16, "weights": __file__}
"""A VGG with the same stages and a thousandth of the work; `as_if_loaded` takes any file for its weights."""


def make_small_sets(root: Path) -> Path:
    """Every data set in `root` in its usual layout, with a few noise images each."""
    draw = np.random.default_rng(0)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(content, "JPEG")
        path.write_bytes(content.getvalue())

    for name, folders in LAYOUTS.items():
        for folder in folders:
            for number in range(4):
                picture(root / name / folder / f"{number}.jpg")
    for person in ("000001_male_Asian_25", "001001_female_Asian_31"):
        for worn in WORN:
            picture(root / "mask" / person / f"{worn}.jpg")
    return root


def composed(*overrides: str, task: str = "train") -> Any:
    """The configuration that Hydra composes from overrides."""
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose(task, list(overrides))


def composed_small(*overrides: str) -> Any:
    """The configuration of training that Hydra composes from overrides, a large VGG replaced by `SMALL_VGG`."""
    config = composed(*overrides)
    name = config.model.name
    if name.startswith("vgg") and name != "vgg_mini":
        OmegaConf.update(config, "model", SMALL_VGG)
    return config


def as_if_loaded(network: nn.Module, recipe: Recipe, weights: str | None, **_: Any) -> WeightsReport:
    """A stand-in for `load_weights`: keeps the random weights, because the ImageNet weights are not available."""
    names = tuple(name for name, _ in network.named_parameters())
    return WeightsReport("random", None, names, (), default_preprocessing(recipe, None), None)


def run_one_step(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Train as `graft train` does with `config` (composed with ONE_STEP) but without loading weights; returns what goes
    into the summary."""
    monkeypatch.setattr(assembly, "load_weights", as_if_loaded)
    if config.strategy.pretrained and config.model.weights is None:
        config.model.weights = "bundled"
    config = settle(config)
    splits = open_data(config)
    return fit.one_process(config, splits, Device("cpu", 1, "bf16-mixed"), fit.RunChoices({}, ()), folder)
