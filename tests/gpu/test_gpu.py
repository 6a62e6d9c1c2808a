"""Behaviour that only a GPU can show; skipped without one."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, Finished, command, succeeded, train
from PIL import Image

from graft.data.augment import Augment
from graft.data.cached_images import CachedImages, bytes_when_decoded
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.resident import CroppedDataset

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

EXAMPLE = ROOT / "examples" / "cifar10_speed"

DIGITS = (
    "model=vgg_mini",
    "strategy=finetune",
    "model.weights=bundled",
    "data=digits",
    "augment=basic",
    "trainer=gpu",
    "trainer.max_epochs=2",
    "review=none",
    "logger.tensorboard=false",
)

ASKED = """
import sys
from graft.data import datamodule
from graft.cli import main
datamodule.GPU_SHARE = {share}
made = datamodule.ImageDataModule.train_dataloader
def listened(self):
    loader = made(self)
    print("LOADER", loader.dataset.device, loader.pin_memory, loader.num_workers)
    return loader
datamodule.ImageDataModule.train_dataloader = listened
sys.exit(main("train"))
"""

NEVER_WAITS = """
import functools, sys, torch
from graft.learning.module import TransferModule
from graft.cli import main
def guarded(method):
    @functools.wraps(method)
    def without_waiting(*arguments, **named):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return method(*arguments, **named)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return without_waiting
for name in ("training_step", "optimizer_step", "validation_step", "test_step"):
    setattr(TransferModule, name, guarded(getattr(TransferModule, name)))
sys.exit(main("train"))
"""

SMALL_CARD = """
import sys
import torch
from graft.cli import main
torch.cuda.set_per_process_memory_fraction(2 * 2**30 / torch.cuda.mem_get_info()[1])
sys.exit(main("train"))
"""


def weights(run: Finished, name: str = "last") -> dict[str, torch.Tensor]:
    file = run.folder / "checkpoints" / f"{name}.ckpt"
    return torch.load(file, map_location="cpu", weights_only=True)["state_dict"]


def test_the_fastest_precision_of_the_gpu_is_chosen_and_training_learns(tmp_path: Path) -> None:
    run = succeeded(train(tmp_path / "run", *DIGITS, "trainer=auto"))
    assert run.summary["device"]["accelerator"] == "gpu"
    assert run.summary["device"]["precision"] in ("bf16-mixed", "16-mixed")
    assert run.summary["metrics"]["test/acc"] > 0.8


def by_script(folder: Path, script: str, *words: str) -> Finished:
    """`graft train WORDS` after what the script does to it."""
    file = folder.with_suffix(".py")
    file.write_text(script)
    return succeeded(command(folder, str(file), f"hydra.run.dir={folder}", *words))


def test_a_small_set_resides_on_the_gpu_and_gives_the_same_metrics_as_in_memory(tmp_path: Path) -> None:
    words = (*DIGITS, "trainer.deterministic=true")
    on_gpu = by_script(tmp_path / "gpu", ASKED.format(share=1), *words)
    in_memory = by_script(tmp_path / "memory", ASKED.format(share=0), *words)
    assert "LOADER cuda:0 False 0" in on_gpu.out
    assert "LOADER None True 0" in in_memory.out
    assert on_gpu.summary["metrics"] == in_memory.summary["metrics"]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two classes of 20 noisy pictures of many sizes."""
    noise = np.random.default_rng(0)
    paths = [tmp_path / "photos" / ("ants", "bees")[number % 2] / f"{number:02}.png" for number in range(40)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (30 + 5 * number, 270 - 6 * number, 3)
        Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("colours", [{}, {"color_jitter": 0.4}, {"policy": "trivial"}, {"policy": "rand"}])
def test_random_crops_on_the_gpu_equal_those_of_the_cpu_without_synchronisation(
    photos: list[Path], interpolation: str, colours: dict[str, Any]
) -> None:
    images = ImageSet([path.name for path in photos], np.arange(40) % 2, paths=photos)
    cached = CachedImages(images, bytes_when_decoded(images))
    list(cached.decode())
    augment = Augment(random_resized_crop={}, horizontal_flip=0.5, random_crop_padding=3, random_erasing=0.3, **colours)
    preprocessing = Preprocessing(64, 64, interpolation=interpolation)  # type: ignore[arg-type]
    on_gpu, on_cpu = (
        CroppedDataset(cached, np.arange(40), preprocessing, augment=augment, seed=0, device=torch.device(kind))
        for kind in ("cuda", "cpu")
    )
    on_gpu.__getitems__([(0, 0), (0, -1)])  # loads libraries
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32
    try:
        for epoch in range(3):
            keys = [(epoch, index) for index in range(-1, 40)]
            torch.cuda.set_sync_debug_mode("error")
            try:
                batch = on_gpu.__getitems__(keys)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            far = (batch.images.cpu().int() - on_cpu.__getitems__(keys).images.int()).abs()
            # without a policy that has thresholds, a level of rounding stays a level
            assert (far > 1).float().mean() < (0.01 if "policy" in colours else 1e-5)
    finally:
        torch.set_float32_matmul_precision(precision)


def test_a_set_of_photographs_is_cropped_on_the_gpu_without_worker_processes(
    photos: list[Path], tmp_path: Path
) -> None:
    words = (
        "model=vgg_mini", "model.weights=bundled", "strategy=finetune", "data=folder",
        f"data.root={tmp_path / 'photos'}", "augment=strong", "trainer=gpu", "trainer.max_epochs=1",
        "trainer.deterministic=true", "data.batch_size=8", "review=none", "logger.tensorboard=false",
        "data.num_workers=4",
    )  # fmt: skip
    run = by_script(tmp_path / "run", ASKED.format(share=1), *words)
    assert "LOADER cuda:0 False 0" in run.out


def test_no_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """What tests/learning/test_waiting.py shows without one."""
    words = (*DIGITS, "callbacks.ema=0.9", "trainer.gradient_clip_val=1", "tta=true")
    run = by_script(tmp_path / "run", NEVER_WAITS, *words, "trainer.log_every_n_steps=1000000", "augment.mixup=0.2")
    assert run.summary["metrics"]["test/acc"] > 0.5


def test_the_same_seed_gives_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    words = (*DIGITS, "trainer.deterministic=true")
    one, other = (weights(succeeded(train(tmp_path / name, *words))) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


SPEED = (
    f"hydra.searchpath=[file://{EXAMPLE / 'conf'}]", "model=vgg_speed", "augment=alternating_flip",
    "callbacks=lookahead", "callbacks.lookahead.every=2",
)  # fmt: skip


@pytest.mark.parametrize("chosen", [("model=vgg11",), SPEED], ids=["vgg11", "vgg_speed"])
def test_our_other_vggs_are_repeatable(chosen: tuple[str, ...], tmp_path: Path) -> None:
    words = (*DIGITS, *chosen, "model.weights=null", "strategy=scratch", "trainer.deterministic=true")
    words = (*words, "trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=1")
    path = os.pathsep.join(filter(None, [str(EXAMPLE), os.environ.get("PYTHONPATH")]))
    runs = (train(tmp_path / name, *words, PYTHONPATH=path) for name in ("one", "other"))
    one, other = (weights(succeeded(run)) for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_resumes_from_its_checkpoint_to_the_bit(tmp_path: Path) -> None:
    words = (*DIGITS, "trainer.deterministic=true", "callbacks.checkpoint=last", "scheduler=none")
    words = (*words, "callbacks.ema=0.9")
    straight = succeeded(train(tmp_path / "straight", *words))
    part = succeeded(train(tmp_path / "part", *words, "trainer.max_epochs=1"))
    gone_on = succeeded(train(tmp_path / "on", *words, f"resume={part.folder / 'checkpoints' / 'last.ckpt'}"))
    one, half, other = weights(straight), weights(part), weights(gone_on)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], half[name]) for name in one)


def test_cuda_graphs_train_the_same_network_and_save_clean_names(tmp_path: Path) -> None:
    words = (*DIGITS, "trainer.precision=32-true", "augment=none", "tta=true")
    plain = succeeded(train(tmp_path / "plain", *words))
    graphs = succeeded(train(tmp_path / "graphs", *words, "trainer.compile=reduce-overhead", timeout=600))
    assert weights(plain).keys() == weights(graphs).keys()
    assert abs(plain.summary["metrics"]["test/acc"] - graphs.summary["metrics"]["test/acc"]) < 0.02


def test_the_largest_batch_is_found_by_running_out_of_memory(tmp_path: Path) -> None:
    """An upper bound on what the process may take stands for a card of 2 GiB."""
    words = (
        "model=vgg11", "strategy=scratch", "data=digits", "data.batch_size=auto", "data.preprocess.input_size=224",
        "data.preprocess.resize_size=224", "trainer=gpu", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
        "trainer.limit_val_batches=1", "trainer.test=false", "logger.tensorboard=false", "review=none",
    )  # fmt: skip
    run = by_script(tmp_path / "run", SMALL_CARD, *words)
    (note,) = (note for note in run.summary["notes"] if "data.batch_size=auto" in note)
    found = int(note.split()[1])
    assert found in (2, 4, 8, 16, 32, 64), note


def test_cached_features_train_the_same_head(tmp_path: Path) -> None:
    words = (
        "model=vgg_mini", "model.weights=bundled", "strategy=feature_extract", "freeze=backbone", "data=digits",
        "augment=none", "trainer=gpu", "trainer.precision=32-true", "trainer.max_epochs=2", "review=none",
        "logger.tensorboard=false", f"paths.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    runs = [succeeded(train(tmp_path / cache, *words, f"cache={cache}")) for cache in ("none", "features")]
    one, other = (weights(run) for run in runs)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-3, rtol=0)  # cuDNN computes in TF32
