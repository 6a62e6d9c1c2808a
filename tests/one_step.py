"""One step of training, of validation and of test, in this process, on a few noisy pictures of every data set."""

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
from graft.config.checks import settle
from graft.config.registration import register
from graft.models.recipe import Recipe
from graft.models.weights import WeightsReport
from graft.system.device import Device
from graft.tasks import build as assembly
from graft.tasks import fit
from graft.tasks.train import open_data

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


def make_small_sets(root: Path) -> Path:
    """All data sets below `root` in their usual layout, a few noisy pictures each."""
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
    """The configuration that Hydra makes of a command's words."""
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose(task, list(overrides))


def as_if_loaded(network: nn.Module, recipe: Recipe, weights: str | None, **_: Any) -> WeightsReport:
    """ImageNet's weights are not here: the random ones pass for them."""
    names = tuple(name for name, _ in network.named_parameters())
    return WeightsReport("random", None, names, (), recipe.usual_preprocessing(), None)


def run_one_step(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `graft train` does with `config` (composed with ONE_STEP), its weights taken as loaded; for the summary."""
    monkeypatch.setattr(assembly, "load_weights", as_if_loaded)
    if config.strategy.pretrained and config.model.weights is None:
        config.model.weights = "bundled"
    settle(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    splits = open_data(config)
    return fit.one_process(plain, splits, Device("cpu", 1, "bf16-mixed"), fit.Told({}, ()), folder)
