"""What only a GPU can show; skipped where there is none."""

from pathlib import Path

import pytest
import torch
from commands import Finished, command, succeeded, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

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
    print("HELD", loader.dataset.device, loader.pin_memory, loader.num_workers)
    return loader
datamodule.ImageDataModule.train_dataloader = listened
sys.exit(main("train"))
"""

NEVER_WAITS = """
import functools, sys, torch
from graft.learning.learner import Learner
from graft.cli import main
def guarded(method):
    @functools.wraps(method)
    def without_waiting(*given, **named):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return method(*given, **named)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return without_waiting
for name in ("training_step", "optimizer_step", "validation_step", "test_step"):
    setattr(Learner, name, guarded(getattr(Learner, name)))
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


def test_the_best_a_gpu_has_is_chosen_and_it_learns(tmp_path: Path) -> None:
    run = succeeded(train(tmp_path / "run", *DIGITS, "trainer=auto"))
    assert run.summary["device"]["accelerator"] == "gpu"
    assert run.summary["device"]["precision"] in ("bf16-mixed", "16-mixed")
    assert run.summary["metrics"]["test/acc"] > 0.8


def by_script(folder: Path, script: str, *words: str) -> Finished:
    """`graft train WORDS` after what the script does to it."""
    file = folder.with_suffix(".py")
    file.write_text(script)
    return succeeded(command(folder, str(file), f"hydra.run.dir={folder}", *words))


def test_a_small_set_lies_on_the_gpu_and_gives_the_figures_it_would_have_given_in_memory(tmp_path: Path) -> None:
    words = (*DIGITS, "trainer.deterministic=true")
    on_gpu = by_script(tmp_path / "gpu", ASKED.format(share=1), *words)
    in_memory = by_script(tmp_path / "memory", ASKED.format(share=0), *words)
    assert "HELD cuda:0 False 0" in on_gpu.out
    assert "HELD None True 0" in in_memory.out
    assert on_gpu.summary["metrics"] == in_memory.summary["metrics"]


def test_no_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """What tests/learning/test_waiting.py shows without one."""
    words = (*DIGITS, "callbacks.ema=0.9", "optimizer.lookahead=3", "trainer.gradient_clip_val=1", "tta=true")
    run = by_script(tmp_path / "run", NEVER_WAITS, *words, "trainer.log_every_n_steps=1000000", "augment.mixup=0.2")
    assert run.summary["metrics"]["test/acc"] > 0.5


def test_the_same_seed_gives_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    words = (*DIGITS, "trainer.deterministic=true")
    one, other = (weights(succeeded(train(tmp_path / name, *words))) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", ["vgg11", "vgg_speed"])
def test_our_other_vggs_can_be_repeated_too(model: str, tmp_path: Path) -> None:
    words = (*DIGITS, f"model={model}", "model.weights=null", "strategy=scratch", "trainer.deterministic=true")
    words = (*words, "trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.limit_val_batches=1")
    one, other = (weights(succeeded(train(tmp_path / name, *words))) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_goes_on_from_its_checkpoint_to_the_bit(tmp_path: Path) -> None:
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
