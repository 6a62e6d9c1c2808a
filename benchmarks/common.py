"""What benchmarks share: configurations as `graft train` composes them, pictures of noise, the device."""

from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from graft.config import conf_dir
from graft.config.schema import register
from graft.config.validation import settle
from graft.data.images import ImageSet
from graft.learning.device import Device


def composed(*words: str) -> Any:
    """The configuration of `graft train WORDS`, without a test, a baseline or any logger."""
    register()
    quiet = ("trainer.baseline=false", "trainer.test=false", "logger=none", "callbacks.progress=none")
    with initialize_config_dir(str(conf_dir())):
        return settle(compose("train", [*quiet, *words]))


def noise(count: int, size: int) -> ImageSet:
    """Pictures [size, size] in memory, of two classes in turn."""
    pixels = np.random.RandomState(0).randint(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet([str(index) for index in range(count)], np.arange(count) % 2, pixels=pixels)


def root_of(device: Device) -> torch.device:
    """The device as torch names it."""
    return torch.device("cuda" if device.accelerator in ("gpu", "cuda") else device.accelerator)
