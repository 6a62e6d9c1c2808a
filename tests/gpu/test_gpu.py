"""What Graft does with a GPU; without one, all but kernels, memory and compiled code on a pretended one."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, Finished, command, succeeded, train, weights
from PIL import Image
from table_files import write
from torch.utils import backend_registration

from graft.data.augment import Augment
from graft.data.cached_images import CachedImages, bytes_when_decoded
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.resident import CroppedDataset, ResidentDataset

PRETENDED = not torch.cuda.is_available()
PYTHON = (str(ROOT / "tests" / "pretend_gpu.py"),) if PRETENDED else ()
"""What comes before a script in the command that runs it."""

needs_gpu = pytest.mark.skipif(PRETENDED, reason="no GPU here")
pytestmark = pytest.mark.skipif(
    PRETENDED and not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="a GPU can be pretended with PyTorch 2.10 or newer",
)

EXAMPLE = ROOT / "examples" / "cifar10_speed"

MINI = ("model=vgg_mini", "model.weights=bundled", "data=digits")
DIGITS = (*MINI, "strategy=finetune", "augment=basic", "trainer=gpu", "trainer.max_epochs=2", "review=none",
          "logger.tensorboard=false")  # fmt: skip
SHORT = ("trainer=gpu", "trainer.precision=32-true", "trainer.max_epochs=1", "trainer.limit_train_batches=3",
         "trainer.limit_val_batches=2", "trainer.limit_test_batches=2")  # fmt: skip
QUIET = ("review=none", "logger=none", "trainer.baseline=false")

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

STRANGERS = """
import sys, pytest, torch
here, there = torch.ones(3), torch.ones(3, device="cuda")
for mistake in (lambda: here + there, there.numpy):
    with pytest.raises((RuntimeError, TypeError)):
        mistake()
torch.cuda.set_sync_debug_mode("error")
for wait in (there.sum().item, there.tolist, there.cpu, lambda: here.to("cuda"), lambda: there[there > 0]):
    with pytest.raises(RuntimeError, match="synchronizing"):
        wait()
there[torch.tensor([0])] * 2 + 1
here.pin_memory().to("cuda", non_blocking=True)
"""


def on_gpu(folder: Path, *words: str) -> Finished:
    """`python WORDS`, which must succeed, with the GPU."""
    return succeeded(command(folder, *PYTHON, *words))


def train_on_gpu(folder: Path, *words: str) -> Finished:
    return on_gpu(folder, str(ROOT / "train.py"), f"hydra.run.dir={folder}", *words)


def by_script(folder: Path, script: str, *words: str) -> Finished:
    """`graft train WORDS` after what the script does to it."""
    file = folder.with_suffix(".py")
    file.write_text(script)
    return on_gpu(folder, str(file), f"hydra.run.dir={folder}", *words)


def evaluated(run: Path, folder: Path) -> dict[str, float]:
    on_gpu(folder / "x", "-m", "graft.cli", "evaluate", f"checkpoint={run}", f"hydra.run.dir={folder / 'evaluated'}")
    return json.loads((folder / "evaluated" / "evaluation.json").read_text())["metrics"]


def here_on_gpu(do: Callable[..., None], *arguments: Any) -> None:
    """`do(*arguments)` in this process, or with the pretended GPU in a fork of it, which keeps it to itself."""
    if not PRETENDED:
        do(*arguments)
        return

    def with_gpu() -> None:
        import pretend_gpu

        pretend_gpu.install()
        do(*arguments)

    process = multiprocessing.get_context("fork").Process(target=with_gpu)
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.fixture
def example_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    path = filter(None, [str(EXAMPLE), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def test_tensors_of_the_gpu_do_not_mix_with_those_of_the_cpu_and_waiting_is_noticed(tmp_path: Path) -> None:
    """Holds on a GPU, and shows that the pretended one notices mistakes."""
    by_script(tmp_path / "strangers", STRANGERS)


@needs_gpu
def test_the_fastest_precision_of_the_gpu_is_chosen_and_training_learns(tmp_path: Path) -> None:
    run = train_on_gpu(tmp_path / "run", *DIGITS, "trainer=auto")
    assert run.summary["device"]["accelerator"] == "gpu"
    assert run.summary["device"]["precision"] in ("bf16-mixed", "16-mixed")
    assert run.summary["metrics"]["test/acc"] > 0.8


# -- data


def test_a_small_set_resides_on_the_gpu_and_gives_the_same_metrics_as_in_memory(tmp_path: Path) -> None:
    words = (*DIGITS, *SHORT, "trainer.deterministic=true")
    on_card = by_script(tmp_path / "gpu", ASKED.format(share=1), *words)
    in_memory = by_script(tmp_path / "memory", ASKED.format(share=0), *words)
    assert "LOADER cuda:0 False 0" in on_card.out
    assert "LOADER None True 0" in in_memory.out
    assert on_card.summary["metrics"] == in_memory.summary["metrics"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two classes of 20 noisy pictures of many sizes."""
    noise, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    paths = [folder / ("ants", "bees")[number % 2] / f"{number:02}.png" for number in range(40)]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (30 + 5 * number, 270 - 6 * number, 3)
        Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


def crops_are_equal(photos: list[Path], interpolation: Any, colours: dict[str, Any]) -> None:
    images = ImageSet([path.name for path in photos], np.arange(40) % 2, paths=photos)
    cached = CachedImages(images, bytes_when_decoded(images))
    list(cached.decode())
    augment = Augment(random_resized_crop={}, horizontal_flip=0.5, random_crop_padding=3, random_erasing=0.3, **colours)
    preprocessing = Preprocessing(64, 64, interpolation=interpolation)
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


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("colours", [{}, {"color_jitter": 0.4}, {"policy": "trivial"}, {"policy": "rand"}])
def test_random_crops_on_the_gpu_equal_those_of_the_cpu_without_synchronisation(
    photos: list[Path], interpolation: str, colours: dict[str, Any]
) -> None:
    here_on_gpu(crops_are_equal, photos, interpolation, colours)


def images_are_equal() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    augment = Augment(random_crop_padding=2, horizontal_flip=0.5, policy="rand", color_jitter=0.4, random_erasing=0.5)
    on_gpu, on_cpu = (
        ResidentDataset(pixels, np.zeros(20, np.int64), Preprocessing(8, 8), augment=augment, seed=0, device=device)
        for device in (torch.device("cuda"), None)
    )
    keys = [(0, 3), (0, 5), (0, -1)]
    torch.cuda.set_sync_debug_mode("error")
    batch = on_gpu.__getitems__(keys)
    torch.cuda.set_sync_debug_mode("default")
    far = (batch.images.cpu().int() - on_cpu.__getitems__(keys).images.int()).abs()
    assert (far > 1).float().mean() < 0.01


def test_images_on_the_gpu_are_augmented_as_on_the_cpu_without_synchronisation() -> None:
    here_on_gpu(images_are_equal)


def test_grey_images_of_16_bits_are_trained_and_evaluated_on_the_gpu(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(24):
        file = tmp_path / "images" / ("dark", "light")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 60000 // (2 - number % 2), (24, 30), dtype=np.uint16)).save(file)
    words = ("data=folder", f"data.root={tmp_path / 'images'}", "data.channels=1", "model=vgg_mini", "strategy=scratch")
    run = train_on_gpu(tmp_path / "run", *words, "data.batch_size=8", "data.num_workers=0", *SHORT, *QUIET)
    expected = run.summary["metrics"]["test/loss"]
    assert evaluated(run.folder, tmp_path)["test/loss"] == pytest.approx(expected, rel=1e-3)


def test_a_set_of_photographs_is_cropped_on_the_gpu_without_worker_processes(
    photos: list[Path], tmp_path: Path
) -> None:
    words = (
        "model=vgg_mini", "model.weights=bundled", "strategy=finetune", "data=folder",
        f"data.root={photos[0].parents[1]}", "augment=strong", "trainer=gpu", "trainer.max_epochs=1",
        "trainer.deterministic=true", "data.batch_size=8", "review=none", "logger.tensorboard=false",
        "data.num_workers=4",
    )  # fmt: skip
    run = by_script(tmp_path / "run", ASKED.format(share=1), *words)
    assert "LOADER cuda:0 False 0" in run.out


# -- training

SPEED = (
    f"hydra.searchpath=[file://{EXAMPLE / 'conf'}]", "model=vgg_speed", "data=digits", "strategy=scratch",
    "augment=alternating_flip", "callbacks=lookahead", "callbacks.lookahead.every=2", "data.preprocess.input_size=32",
    "data.preprocess.resize_size=32",
)  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        (*SPEED, "tta=true"),
        (*SPEED, "augment.mixup=0.3", "augment.cutmix=1", "augment.random_erasing=0.5", "callbacks.ema=0.9"),
        (*SPEED, "trainer.gradient_clip_val=1", "loss.class_weights=balanced", "data.resident_gb=0"),
        (*MINI, "strategy=gradual", "optimizer=adamw", "loss=focal", "metrics=log_loss", "data.sampler=balanced"),
        (*MINI, "strategy=feature_extract", "freeze=backbone", "cache=features"),
        (*MINI, "optimizer=muon", "strategy.l2_sp=0.1", "loss=logit_adjusted"),
        (*MINI, "optimizer=schedule_free", "strategy.batch_norm_statistics=keep"),
    ],
)
def test_no_step_waits_for_the_gpu(words: tuple[str, ...], tmp_path: Path, example_on_path: None) -> None:
    words = (*words, *SHORT, *QUIET, "data.num_workers=0", f"paths.cache={tmp_path / 'cache'}")
    run = by_script(tmp_path / "run", NEVER_WAITS, *words, "trainer.log_every_n_steps=1000000")
    assert run.summary["status"] == "finished"


def test_a_logged_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """The counterpart of the test above, which would notice it."""
    with pytest.raises(AssertionError, match="synchronizing"):
        by_script(tmp_path / "run", NEVER_WAITS, *MINI, *SHORT, *QUIET, "trainer.log_every_n_steps=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that is looked at during training."""
    folder = tmp_path_factory.mktemp("gpu") / "run"
    metrics = "metrics=[auroc,average_precision,ece,f1_macro,log_loss,mcc,top5]"
    words = (*MINI, *SHORT, "trainer.limit_test_batches=1.0", "callbacks.ema=0.9", metrics, "review=full")
    return train_on_gpu(folder, *words, "data.num_workers=0", "callbacks.checkpoint=last").folder


def test_a_network_is_evaluated_on_the_gpu_as_its_run_did(run: Path, tmp_path: Path) -> None:
    found = evaluated(run, tmp_path)
    expected = json.loads((run / "summary.json").read_text())["metrics"]
    assert found["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-3)
    assert found["test/auroc"] == pytest.approx(expected["test/auroc"], rel=1e-3)


@pytest.mark.parametrize(
    "words",
    [
        "evaluate checkpoint=[{run},{run}/checkpoints/last.ckpt] tta=true trainer.accelerator=gpu",
        "predict checkpoint=[{run},{run}/checkpoints/last.ckpt] source={photos} trainer.accelerator=gpu",
        "soup runs=[{run},{run}/checkpoints/last.ckpt] trainer.accelerator=gpu statistics_images=64",
        "lr_find data=digits model=vgg_mini model.weights=bundled trainer=gpu lr_find.steps=10",
        "improve run={run} improve.folds=2 trainer.accelerator=gpu",
        "advise data=faces models=[vgg_mini] augment=none trainer=gpu advise.images=60",
    ],
    ids=lambda words: words.split()[0],
)
def test_other_commands_compute_on_the_gpu(words: str, run: Path, photos: list[Path], tmp_path: Path) -> None:
    filled = words.format(run=run, photos=photos[0].parent).split()
    done = on_gpu(tmp_path / "x", "-m", "graft.cli", *filled, f"paths.cache={tmp_path / 'cache'}")
    assert "Traceback" not in done.err


def test_several_labels_are_learned_and_scored_on_the_gpu(photos: list[Path], tmp_path: Path) -> None:
    rows = [(str(path), ("ant;dark", "bee", "", "bee;dark")[number % 4]) for number, path in enumerate(photos)]
    table = write(tmp_path / "labels.csv", [("file", "labels"), *rows])
    words = ("model=vgg_mini", "model.weights=bundled", "data=table", f"data.table={table}", "data.label_separator=';'")
    words = (*words, "loss=binary_cross_entropy", "loss.positive_weights=balanced", "metrics=[auroc,log_loss]")
    run = train_on_gpu(tmp_path / "run", *words, *SHORT, *QUIET, "data.batch_size=8", "data.num_workers=0")
    found = evaluated(run.folder, tmp_path)
    assert {name: found[name] for name in ("test/map", "test/f1_macro")} == {
        name: pytest.approx(run.summary["metrics"][name], abs=1e-3) for name in ("test/map", "test/f1_macro")
    }


@pytest.mark.parametrize(
    "words",
    [
        ("optimizer=adamw", "optimizer.sam_rho=0.05", "optimizer.sam_adaptive=true", "trainer.precision=16-mixed"),
        ("loss=distill", "loss.teacher={run}", "augment.mixup=0.2"),
        ("strategy=feature_extract", "freeze=backbone", "cache.views=2", "augment=light"),
        ("optimizer=lion", "optimizer.lr=1e-4", "trainer.accumulate_grad_batches=2", "scheduler=plateau"),
    ],
    ids=lambda words: words[0],
)
def test_ways_to_train_keep_their_state_on_the_gpu(words: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    filled = [word.format(run=run) for word in words]
    cached = (*QUIET, "data.num_workers=0", f"paths.cache={tmp_path / 'cache'}")
    done = train_on_gpu(tmp_path / "run", *MINI, *SHORT, *cached, *filled)
    assert done.summary["device"]["accelerator"] == "gpu"


def test_a_run_goes_on_from_its_checkpoint_on_the_gpu(tmp_path: Path) -> None:
    words = (*MINI, *SHORT, *QUIET, "data.num_workers=0", "callbacks.ema=0.9", "optimizer=adamw")
    words = (*words, "trainer.deterministic=true", "callbacks.checkpoint=last", "scheduler=none", "trainer.test=false")
    straight = train_on_gpu(tmp_path / "straight", *words, "trainer.max_epochs=2")
    part = train_on_gpu(tmp_path / "part", *words)
    resume = f"resume={part.folder / 'checkpoints' / 'last.ckpt'}"
    resumed = train_on_gpu(tmp_path / "resumed", *words, "trainer.max_epochs=2", resume)
    one, half, other = weights(straight), weights(part), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], half[name]) for name in one)


# -- what only a GPU can show


@needs_gpu
@pytest.mark.parametrize(
    "chosen",
    [(), ("model=vgg11", "model.weights=null", "strategy=scratch"), (*SPEED, "model.weights=null")],
    ids=["vgg_mini", "vgg11", "vgg_speed"],
)
def test_the_same_seed_gives_the_same_weights_to_the_bit(
    chosen: tuple[str, ...], tmp_path: Path, example_on_path: None
) -> None:
    words = (*DIGITS, *chosen, *SHORT[2:], "trainer.deterministic=true")
    one, other = (weights(train_on_gpu(tmp_path / name, *words)) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@needs_gpu
def test_cuda_graphs_train_the_same_network_and_save_clean_names(tmp_path: Path) -> None:
    words = (*DIGITS, "trainer.precision=32-true", "augment=none", "tta=true")
    plain = train_on_gpu(tmp_path / "plain", *words)
    graphs = succeeded(train(tmp_path / "graphs", *words, "trainer.compile=reduce-overhead", timeout=600))
    assert weights(plain).keys() == weights(graphs).keys()
    assert abs(plain.summary["metrics"]["test/acc"] - graphs.summary["metrics"]["test/acc"]) < 0.02


@needs_gpu
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


@needs_gpu
def test_cached_features_train_the_same_head(tmp_path: Path) -> None:
    words = (
        *MINI, "strategy=feature_extract", "freeze=backbone", "augment=none", "trainer=gpu", "review=none",
        "trainer.precision=32-true", "trainer.max_epochs=2", "logger=none", f"paths.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    runs = [train_on_gpu(tmp_path / cache, *words, f"cache={cache}") for cache in ("none", "features")]
    one, other = (weights(run) for run in runs)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-3, rtol=0)  # cuDNN computes in TF32
