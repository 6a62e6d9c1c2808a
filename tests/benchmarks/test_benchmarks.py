"""Each benchmark runs and prints what its docstring describes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from one_training_step import make_small_sets

from benchmarks.gpu import MEASUREMENTS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def output_of(*words: str) -> str:
    """What `python -m benchmarks.WORDS` prints."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_start() -> None:
    assert re.search(r"first step on digits +median +\d", output_of("benchmarks.start", "--repeat", "1"))


def test_images_in() -> None:
    text = output_of("benchmarks.images_in", "--quick", "--pairs", "1", "--images", "64", "--photographs", "4")
    assert text.count("median ratio of 1 pairs") == 2


def test_training_step() -> None:
    text = output_of("benchmarks.training_step", "--quick", "--pairs", "1", "--steps", "2", "--batch-size", "16")
    assert re.search(r"plain / Graft: median \d", text)
    assert re.search(r"by hand / Graft: median \d", text)


def test_growth() -> None:
    text = output_of("benchmarks.growth", "--model", "vgg_mini", "--batch-size", "4", "--side", "64")
    assert text.count(" ms in proportion") == 13


def test_memory() -> None:
    words = ("--model", "vgg_mini", "--size", "32", "--batch-size", "32")
    assert re.search(r"by hand \d+ MiB, Graft \d+ MiB", output_of("benchmarks.memory", *words))
    assert re.search(r"64 images: \d+ MiB; of 128: \d+ MiB", output_of("benchmarks.memory", "--features", "64"))


def test_cifar10(tmp_path: Path) -> None:
    text = output_of("benchmarks.cifar10", "--data", str(make_small_sets(tmp_path)), "--images", "30", "--pairs", "1")
    assert re.search(r"the notebook / cifar10_vgg16: median \d", text)
    assert re.search(r"the notebook / cifar10_speed: median \d", text)


@pytest.mark.parametrize("words", [(), ("--strategy", "finetune", "--crops")])
def test_whole_run(words: tuple[str, ...]) -> None:
    text = output_of("benchmarks.whole_run", "--quick", "--pairs", "1", "--epochs", "2", *words)
    assert "median ratio of 1 pairs" in text


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    text = output_of(
        "benchmarks.gpu", "--device", "cpu", "--quick", "--minutes", "9", "--output", f"{tmp_path}/gpu.jsonl"
    )
    results = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {result["measurement"] for result in results} >= set(MEASUREMENTS)
    assert not [result for result in results if result["value"] is None and result["measurement"] != "compiled"], text
