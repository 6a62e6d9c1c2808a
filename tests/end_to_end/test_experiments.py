"""Every preset passes one training, validation and test step and has the settings that its comment states."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from one_training_step import ONE_STEP, composed, composed_small, make_small_sets, run_one_step

from graft.config import conf_dir

EXPERIMENTS = sorted({file.stem for file in (conf_dir() / "experiment").glob("*.yaml")} - {"imagenet_predict"})
NETWORKS = ("resnet18", "alexnet", "vgg11_bn", "squeezenet1_0", "densenet121", "inception_v3")


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few pictures of every set."""
    return make_small_sets(tmp_path_factory.mktemp("sets"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_each_preset_trains_validates_and_tests(
    experiment: str, small_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"experiment={experiment}", f"paths.data={small_sets}", *ONE_STEP, "data.shots=null")
    result = run_one_step(composed_small(*words), tmp_path, monkeypatch)
    assert {"train/loss", "val/acc", "test/acc", "test/loss"} <= result["metrics"].keys()
    assert all(np.isfinite(value) for name, value in result["metrics"].items() if name.endswith("loss"))
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    json.dumps(saved["graft"]["config"])


def test_all_six_networks_have_all_three_strategies() -> None:
    expected = {f"hymenoptera_{net}_{how}" for net in NETWORKS for how in ("feature_extract", "finetune", "scratch")}
    assert expected <= set(EXPERIMENTS)


@pytest.mark.parametrize("network", ["alexnet", "inception_v3"])
def test_the_tutorial_s_settings_compose(network: str) -> None:
    config = composed(f"experiment=hymenoptera_{network}_finetune")
    assert config.model.name == network
    assert (config.data.batch_size, config.trainer.max_epochs) == (8, 15)
    assert config.optimizer._target_ == "torch.optim.SGD"
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.001, 0.9)
    assert (config.optimizer.weight_decay, config.scheduler._target_) == (0.0, None)
    assert set(config.strategy.lr_multipliers.values()) == {1.0}
    assert config.data.preprocess.resize_size == (299 if network == "inception_v3" else 224)
    frozen = composed(f"experiment=hymenoptera_{network}_feature_extract").freeze
    assert frozen._target_ == "graft.transfer.freeze.backbone"


def test_a_learning_rate_per_layer_group() -> None:
    config = composed("experiment=hymenoptera_vgg16_discriminative")
    rates = {name: factor * config.optimizer.lr for name, factor in config.strategy.lr_multipliers.items()}
    assert rates == pytest.approx({"features": 1e-4, "classifier": 5e-4, "head": 1e-3})
