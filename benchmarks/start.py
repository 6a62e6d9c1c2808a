"""How long one waits: for an answer to a word, and for the first training step.

    python -m benchmarks.start
    python -m benchmarks.start --repeat 5

Whole processes, warm (one run before them is not counted), next to one that only imports torch, torchvision
and Lightning. The first step is there when its line is in metrics.csv, which is when the second is logged; the time
includes the validation before it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

GRAFT = (sys.executable, "-m", "graft.cli")
ANSWERS = {
    "graft --help": ("--help",),
    "graft train --help": ("train", "--help"),
    "graft train --cfg job": ("train", "--cfg", "job"),
    "a mistake (model=vgg17)": ("train", "model=vgg17"),
    "a mistake (optimizer.lrr=1)": ("train", "optimizer.lrr=1"),
}
DIGITS = ("train", "model=vgg_mini", "data=digits", "trainer.log_every_n_steps=1", "callbacks.progress=none")


def whole(*words: str) -> float:
    """Seconds of a process from start to end."""
    started = time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def to_the_first_step() -> float:
    """Seconds until metrics.csv contains a training step; then the run is stopped."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        words = [*GRAFT, *DIGITS, f"hydra.run.dir={folder}/run"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            table = Path(folder, "run", "metrics.csv")
            while process.poll() is None and not _has_a_step(table):
                time.sleep(0.005)
            seconds = time.perf_counter() - started
            if process.poll() is not None:
                sys.exit("graft train ended before its first step")
            process.kill()
    return seconds


def _has_a_step(table: Path) -> bool:
    if not table.is_file():
        return False
    header, *rows = table.read_text().splitlines() or [""]
    if "train/loss_step" not in header.split(","):
        return False
    column = header.split(",").index("train/loss_step")
    return any(len(row.split(",")) > column and row.split(",")[column] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    imports = (sys.executable, "-c", "import torch, torchvision, lightning.pytorch")
    ways: dict[str, Callable[[], float]] = {"import torch, torchvision, lightning": lambda: whole(*imports)}
    ways |= {name: lambda words=words: whole(*GRAFT, *words) for name, words in ANSWERS.items()}  # type: ignore[misc]
    ways["first step on digits"] = to_the_first_step
    for name, way in ways.items():
        way()
        times = [way() for _ in range(repeat)]
        print(f"{name:<40} median {statistics.median(times):5.2f} s ({min(times):.2f} to {max(times):.2f})", flush=True)


if __name__ == "__main__":
    main()
