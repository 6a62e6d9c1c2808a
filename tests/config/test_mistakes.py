"""Mistakes give a clear message and exit code 1 before torch is imported."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command

import graft
from graft.cli import explain
from graft.config import conf_dir
from graft.config.overrides import quote_literals
from graft.errors import ConfigError
from graft.tasks.checks import settle

PROBE = """
import sys
from graft.cli import main
try:
    main("train")
finally:
    print("torch" in sys.modules, file=sys.stdout)
"""

# overrides: what the answer must contain
MISTAKES = {
    "model=vgg61": ["model=vgg61", "Did you mean vgg16 or"],
    "strategy=fintune": ["Did you mean finetune"],
    "optimiser=sgd": ["optimizer"],
    "optimizer.lrr=3": ["lr"],
    "optimizer.lr=much": ["optimizer.lr", "much"],
    "trainer.deterministic=wran": ["trainer.deterministic=wran", "Did you mean warn"],
    "trainer.compile=reduce-overhed": ["trainer.compile=reduce-overhed", "Did you mean reduce-overhead"],
    "scheduler.anneal_strategy=linera": ["scheduler.anneal_strategy=linera", "Did you mean linear"],
    "lr=0.1": ["lr: there is no such key", "Did you mean optimizer.lr?"],
    "+lr=7": ["lr=7: there is no such key", "Did you mean optimizer.lr?"],
    "epochs=5": ["Did you mean trainer.max_epochs?"],
    "+epochs=1": ["epochs=1: there is no such key", "Did you mean trainer.max_epochs?"],
    "batch_size=8": ["Did you mean data.batch_size?"],
    "accelerator=gpu": ["Did you mean trainer.accelerator?"],
    "+accelerator=gpu": ["accelerator=gpu: there is no such key", "Did you mean trainer.accelerator?"],
    "experiment=flowers_vgg16_feature_extract optimizer=adam": ["optimizer.momentum=0.0", "add ~optimizer.momentum"],
    "optimizer.lr=-1": ["optimizer.lr=-1"],
    "freeze=backbone freeze.every=2": ["freeze.every=2", "takes no arguments"],
    "strategy=gradual freeze.evry=2": ["freeze.evry", "every"],
    "strategy=scratch freeze=backbone": ["strategy=scratch", "freeze=backbone", "feature_extract"],
    "model.weights=null": ["strategy=finetune", "model.weights=null", "strategy=scratch"],
    "strategy=scratch model.weights=default": ["strategy=scratch", "model.weights=default", "strategy=finetune"],
    "model.weights=nowhere.pth": ["nowhere.pth", "no such file"],
    "model.weights=bundled": ["model=vgg16", "bundled", "vgg_mini"],
    "model=vgg_custom": ["model=vgg_custom", "strategy=scratch"],
    "data.preprocess.input_size=16": ["data.preprocess.input_size=16", "vgg16", "32x32"],
    "model=timm": ["model.name"],
    "model=timm model.name=resnet51": ["resnet51", "timm has no such network", "resnet50"],
    "model=timm model.name=resnet50 model.weights=bundled": ["bundled", "vgg_mini"],
    "model=resnetv2_50d_gn": ["resnetv2_50d_gn"],
    "model.name=resnetv2_50d_gn": ["model=timm model.name=resnetv2_50d_gn"],
    "model=torchvision model.name=vit_b_16 data.preprocess.input_size=160": ["vit_b_16", "224x224", "model.input_size"],
    "data.batch_size=1 model=vgg16_bn": ["data.batch_size=1", "BatchNorm"],
    "data.val_fraction=1.0": ["data.val_fraction=1.0"],
    "data.shots=0": ["data.shots=0"],
    "data.on_error=skp": ["Did you mean skip"],
    "review.images=-1": ["review.images=-1"],
    "trainer=ddp_slurm": ["trainer=ddp_slurm", "srun", "trainer=ddp"],
    "trainer.num_nodes=2": ["trainer.num_nodes=2", "trainer=ddp_slurm"],
    "search.pruner=medain": ["search.pruner=medain", "Did you mean median"],
    "search.reduction_factor=1": ["search.reduction_factor=1", "at least 2"],
    "optimized_metric=val/accuracy": ["Did you mean val/acc"],
    "optimized_metric=test/acc": ["optimized_metric=test/acc", "callbacks.checkpoint=best"],
    "data=folder data.root=EMPTY strategy=scratch": ["EMPTY", "no"],
    "data=folder data.root=ONE strategy=scratch": ["ONE", "class"],
    "data=folder data.root=NOWHERE": ["NOWHERE", "does not exist"],
    "data=hymenoptera data.download=false": ["hymenoptera data", "data.download=false"],
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_names_the_way_out_without_a_stack_trace_or_torch(overrides: str, tmp_path: Path) -> None:
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "ONE" / "cat").mkdir(parents=True)
    picture = conf_dir().parent / "docs"  # any file that is no picture
    (tmp_path / "ONE" / "cat" / "notes.txt").write_text(str(picture))
    done = command(tmp_path / "run", "-c", PROBE, *overrides.split())
    assert done.code == 1
    assert done.out.strip().endswith("False"), "torch was imported"
    assert "Traceback" not in done.err
    for word in MISTAKES[overrides]:
        assert word in done.err, done.err


# other commands: a word of the command, and what the answer must contain
NOT_A_KEY = {
    "evaluate +epochs=3": ["epochs=3", "trainer.max_epochs is a key of graft train, not of this command"],
    "evaluate lr=0.1": ["lr", "optimizer.lr is a key of graft train, not of this command"],
    "evaluate batch_size=8": ["Did you mean data.batch_size?"],
    "evaluate accelerator=gpu": ["Did you mean trainer.accelerator?"],
    "evaluate trainer=cpu": ["trainer: not a config group of this command", "trainer.accelerator, trainer.precision"],
    "evaluate optimizer=adam": ["optimizer is a group of graft train, not of this command"],
    "evaluate ckpt=run": ["Did you mean checkpoint?"],
    "predict epochs=5": ["trainer.max_epochs is a key of graft train, not of this command"],
    "predict model=vgg16 source=x +lr=7": ["lr=7", "optimizer.lr is a key of graft train, not of this command"],
    "predict batch=8": ["Did you mean batch_size?"],
    "predict image=photo.jpg": ["Did you mean source?"],
    "predict +accelerator=gpu": ["accelerator=gpu", "Did you mean trainer.accelerator?"],
    "export epochs=5": ["trainer.max_epochs is a key of graft train, not of this command"],
    "export accelerator=gpu": ["trainer.accelerator is a key of graft train, not of this command"],
    "export opset=17": ["Did you mean format.onnx.opset?"],
    "inspect +lr=7": ["lr=7", "optimizer.lr is a key of graft train, not of this command"],
    "inspect batch_size=8": ["Did you mean data.batch_size?"],
    "compare +epochs=5": ["epochs=5", "trainer.max_epochs is a key of graft train, not of this command"],
    "compare metric=val/loss": ["Did you mean sort?"],
}


@pytest.mark.parametrize("words", NOT_A_KEY)
def test_a_key_that_a_command_does_not_have_is_refused_with_one_that_it_has(words: str, tmp_path: Path) -> None:
    done = command(tmp_path / "run", "-c", PROBE.replace('main("train")', "main()"), *words.split())
    assert done.code == 1
    assert done.out.strip().endswith("False"), "torch was imported"
    assert "Traceback" not in done.err
    for word in NOT_A_KEY[words]:
        assert word in done.err, done.err


@pytest.mark.parametrize(
    ("task", "words", "overrides"),
    [
        ("predict", ["photo.jpg", "topk=1"], ["topk=1", "source='photo.jpg'"]),
        ("predict", ["a (1).jpg", "b.jpg"], ["source=['a (1).jpg','b.jpg']"]),
        ("evaluate", ["outputs/run", "split=val"], ["split=val", "checkpoint='outputs/run'"]),
        ("compare", ["outputs/sweep"], ["runs='outputs/sweep'"]),
        ("train", ["--cfg", "job", "-cd", "my/conf"], ["--cfg", "job", "-cd", "my/conf"]),
    ],
)
def test_a_path_without_a_key_is_the_main_argument(task: str, words: list[str], overrides: list[str]) -> None:
    assert quote_literals(words, task) == overrides


@pytest.mark.parametrize(
    ("task", "words", "answer"),
    [
        ("train", ["photos"], r"photos: not an override"),
        ("evaluate", ["run", "checkpoint=other"], r"checkpoint=… is given, too"),
        ("export", ["a", "b"], r"takes one path"),
        ("train", ["trainer.devices=[0]"], r"CUDA_VISIBLE_DEVICES=0 and trainer\.devices=1"),
        ("train", ["trainer.devices=0,1"], r"CUDA_VISIBLE_DEVICES=0,1 and trainer\.devices=2"),
    ],
)
def test_an_argument_without_a_meaning_is_refused(task: str, words: list[str], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        quote_literals(words, task)


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert command(tmp_path / "run", "-c", PROBE.replace('main("train")', "main()"), "--version").out.startswith(
        f"graft {graft.__version__}\n"
    )


def test_an_argument_that_a_preset_sets_can_be_removed() -> None:
    overrides = ("experiment=flowers_vgg16_feature_extract", "optimizer=adam", "~optimizer.momentum")
    assert settle(graft.compose(*overrides).config).optimizer.momentum is None


def test_a_missing_gpu_is_reported(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = command(tmp_path / "run", "-m", "graft.cli", "train", "trainer=gpu")
    assert done.code == 1
    assert "no GPU" in done.err
    assert "trainer=cpu" in done.err


def test_hydra_full_error_prints_the_stack_trace(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "optimizer.lr=-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"HYDRA_FULL_ERROR": "1", "PATH": ""},
    )
    assert "Traceback" in done.stderr


def test_the_download_timeout_is_configurable(tmp_path: Path) -> None:
    """The proxy accepts connections and never answers; with the default it would take 20 seconds to say so."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", PROBE, "data=flowers", "download.timeout=0.3"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "http_proxy": proxy, "https_proxy": proxy, "TORCH_HOME": str(tmp_path)},
            timeout=15,
        )
    assert done.returncode == 1
    assert "flowers data" in done.stderr
    assert "ImageNet weights of vgg16" in done.stderr
    assert done.stderr.count("no answer in time") == 2
    assert done.stdout.strip().endswith("False"), "torch was imported"


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"]])
def test_help_and_cfg_do_not_import_torch(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("False"), done.stderr
    for word in ("vgg16", "hymenoptera", "finetune"):
        assert word in done.stdout


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "sweep"), ("submitit", "slurm"), ("ray", "ray")])
def test_a_missing_plugin_names_the_extra_that_brings_it(launcher: str, extra: str) -> None:
    error = RuntimeError(f"Unknown plugin class : 'hydra_plugins.hydra_{launcher}_launcher.launcher.Launcher'")
    assert f"pip install 'graft-vision[{extra}]'" in str(explain(error))


def test_a_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    words = f"{sys.executable} -m graft.cli train --help | head -1"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("graft train")
    assert done.stderr == ""


def test_an_unknown_task_names_the_nearest(tmp_path: Path) -> None:
    done = command(tmp_path / "run", "-m", "graft.cli", "trian", fresh=True)
    assert done.code == 2
    assert "Did you mean train?" in done.err
