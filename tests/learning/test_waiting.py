"""Training steps do not synchronise with the device, shown on a device without data (meta)."""

import traceback
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from commands import ROOT
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from one_training_step import composed
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graft.data.augment import Augment
from graft.data.cached_images import CachedImages, bytes_when_decoded
from graft.data.datasets import Batch
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.resident import CroppedDataset, ResidentDataset
from graft.learning import module as learning
from graft.system.device import Device
from graft.tasks import fit
from graft.tasks.checks import settle
from graft.tasks.data import open_data

aten = torch.ops.aten
AWAY = torch.device("meta")
"""torch's device without data stands for a GPU: reading a number from it fails where a GPU would synchronise, and
operations that mix it with the CPU fail as on a GPU."""


class NoAccelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        assert device == AWAY


class Away(SingleDeviceStrategy):
    """Lightning's strategy for one device, which is left where it is at the end: it has nothing to bring back."""

    def teardown(self) -> None:
        pass


class Waits(TorchDispatchMode):
    """Answers what is asked of the device with ones and notes who asked.

    Attributes:
        during: the current hook and its number, counted from 1; None between batches.
        asked: during what, and from where in Graft or Lightning; between batches nothing is noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.during: tuple[str, int] | None = None
        self.asked: list[tuple[tuple[str, int], str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        if first is None:
            return func(*args, **kwargs)
        with self:
            simpler = func.decompose(*args, **kwargs)  # in inference mode, operations come as they were called
        if simpler is not NotImplemented:
            return simpler
        if func is aten._local_scalar_dense.default:
            self._note()
            return 1
        if func is aten._to_copy.default and torch.device(kwargs.get("device") or AWAY) != AWAY:
            self._note()
            return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if func in (aten.nonzero.default, aten._unique2.default, aten.bincount.default):
            self._note()
            raise AssertionError(f"{func} waits for the device, {self.asked[-1]}")
        if func is aten.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1]):
            self._note()
        return func(*args, **kwargs)

    def _note(self) -> None:
        if self.during:
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            self.asked.append((self.during, " < ".join(f"{frame.name}:{frame.lineno}" for frame in frames[-3:-6:-1])))


class Watch(pl.Callback):
    """Tells `waits` the current hook and records where it waited."""

    def __init__(self, waits: Waits) -> None:
        self.waits = waits
        self.places: set[torch.device] = set()
        self.batches = {"training": 0, "validation": 0, "test": 0}

    def _begin(self, part: str, number: int) -> None:
        self.waits.during = (part, number)

    def _end(self, module: Any, batch: Any) -> None:
        assert self.waits.during
        self.batches[self.waits.during[0]] += 1
        seen = batch.images if isinstance(batch, Batch) else batch.features[0]
        self.places |= {each.device for each in (seen, batch.labels, next(module.network.parameters()))}
        self.waits.during = None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        self._begin("training", trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        self._end(module, batch)

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, number: int, *_: Any) -> None:
        self._begin("validation", number + 1)

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._end(module, batch)

    def on_test_batch_start(self, trainer: Any, module: Any, batch: Any, number: int, *_: Any) -> None:
        self._begin("test", number + 1)

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._end(module, batch)


def run_away(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Waits, Watch]:
    """`graft train WORDS` on digits, on the device without numbers."""
    waits = Waits()
    watch = Watch(waits)
    trainer, optimizer = pl.Trainer, learning.build_optimizer

    def trainer_away(**wanted: Any) -> pl.Trainer:
        wanted |= {"accelerator": "auto", "strategy": Away(AWAY, accelerator=NoAccelerator())}
        return trainer(**wanted | {"callbacks": [*wanted["callbacks"], watch]})

    monkeypatch.setattr(pl, "Trainer", trainer_away)
    monkeypatch.setattr("graft.models.bounded.require_stored", lambda *_: None)  # which refuses tensors without numbers
    monkeypatch.setattr(learning, "build_optimizer", lambda *given, fused: optimizer(*given, fused=False))
    keeps_parameters = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # as a move to a GPU does
    try:
        config = composed(*SHORT, f"paths.cache={folder / 'cache'}", *words)
        config = settle(config)
        with waits:
            fit.one_process(config, open_data(config), Device("cpu", 1, "32-true"), fit.RunChoices({}, ()), folder)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(keeps_parameters)
    return waits, watch


SHORT = (
    "data=digits", "data.preprocess.input_size=32", "data.preprocess.resize_size=32", "trainer.baseline=false",
    "trainer.max_epochs=2", "trainer.limit_train_batches=12", "trainer.log_every_n_steps=10",
)  # fmt: skip
SPEED = (
    f"hydra.searchpath=[file://{ROOT}/examples/cifar10_speed/conf]", "model=vgg_speed", "strategy=scratch",
    "augment=alternating_flip", "callbacks=lookahead", "callbacks.lookahead.every=2",
)  # fmt: skip
MINI = ("model=vgg_mini", "model.weights=bundled")


@pytest.mark.parametrize(
    "words",
    [
        SPEED,
        (*SPEED, "augment.mixup=0.3", "augment.cutmix=1", "augment.random_erasing=0.5", "callbacks.ema=0.9"),
        (*SPEED, "trainer.gradient_clip_val=1", "loss.class_weights=balanced", "data.resident_gb=0"),
        (*MINI, "strategy=gradual", "optimizer=adamw", "loss=focal", "metrics=log_loss", "data.sampler=balanced"),
        (*MINI, "strategy=feature_extract", "freeze=backbone", "cache=features"),
    ],
)
def test_only_logged_steps_synchronise_the_device(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, watch = run_away(tmp_path, monkeypatch, *words)
    assert watch.places == {AWAY}
    assert watch.batches == {"training": 24, "validation": 6, "test": 6}
    logged = {during for during, _ in waits.asked}
    assert {("training", 10), ("training", 20)} <= logged, "the harness notices nothing"
    assert not [asked for asked in waits.asked if asked[0][0] != "training" or asked[0][1] % 10]


COLOURS = {"horizontal_flip": 0.5, "policy": "rand", "color_jitter": 0.4, "random_erasing": 0.5}


@pytest.mark.parametrize("augment", [None, Augment(random_crop_padding=2, **COLOURS)])
def test_data_on_the_device_are_augmented_without_synchronisation(augment: Augment | None) -> None:
    pixels, labels = np.zeros((20, 8, 8, 3), np.uint8), np.zeros(20, np.int64)
    waits = Waits()
    with waits:
        waits.during = ("training", 1)
        dataset = ResidentDataset(pixels, labels, Preprocessing(8, 8), augment=augment, seed=0, device=AWAY)
        batch = dataset.__getitems__([(0, 3), (0, 5), (0, -1)])
    assert batch.images.device == batch.labels.device == AWAY
    assert not waits.asked


def test_random_crops_are_resized_on_the_device_without_synchronisation(tmp_path: Path) -> None:
    noise, paths = np.random.default_rng(0), [tmp_path / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        Image.fromarray(noise.integers(0, 256, (9 + number, 30 - number, 3), dtype=np.uint8)).save(path)
    images = ImageSet([path.name for path in paths], np.zeros(20, np.int64), paths=paths)
    held = CachedImages(images, bytes_when_decoded(images))
    list(held.decode())
    augment = Augment(random_resized_crop={}, **COLOURS)
    dataset = CroppedDataset(held, np.arange(20), Preprocessing(8, 8), augment=augment, seed=0, device=AWAY)
    waits = Waits()
    with waits:
        waits.during = ("training", 1)
        batches = [dataset.__getitems__([(epoch, index) for index in range(-1, 20)]) for epoch in range(3)]
    assert {(batch.images.device, batch.images.shape) for batch in batches} == {(AWAY, (21, 3, 8, 8))}
    assert not waits.asked
