"""What benchmarks share: configurations as `graft train` composes them, pictures of noise."""

from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from graft.config import conf_dir
from graft.config.registration import register
from graft.data.images import ImageSet
from graft.tasks.checks import settle


def composed(*words: str) -> Any:
    """The configuration of `graft train WORDS`, without a test, a baseline or any logger."""
    register()
    quiet = ("trainer.baseline=false", "trainer.test=false", "logger=none", "callbacks.progress=none")
    with initialize_config_dir(str(conf_dir())):
        return settle(compose("train", [*quiet, *words]))


def training(model: str, size: int, batch_size: int, *words: str) -> Any:
    """The configuration of an epoch of steps and nothing else, from random weights, on pictures of `size` pixels."""
    return composed(
        f"model={model}", "strategy=scratch", "data=cifar10", "augment=none", "scheduler=none", "optimizer=sgd",
        "optimizer.lr=0.001", f"data.batch_size={batch_size}", f"data.preprocess.input_size={size}",
        f"data.preprocess.resize_size={size}", "trainer.max_epochs=1", "trainer.limit_val_batches=0",
        "callbacks.checkpoint=last", *words,
    )  # fmt: skip


def noise(count: int, size: int) -> ImageSet:
    """Pictures [size, size] in memory, of two classes in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet([str(index) for index in range(count)], np.arange(count) % 2, pixels=pixels)
