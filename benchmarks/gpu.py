"""Everything about Graft that a GPU can show, in one command.

    python -m benchmarks.gpu                                          8 minutes, data sets in data/, default weights
    python -m benchmarks.gpu --minutes 5 --data DATASETS --weights vgg16.safetensors --output gpu.jsonl
    python -m benchmarks.gpu --only step input                        some of the measurements
    python -m benchmarks.gpu --device cpu --quick                     tries out the command itself, without a GPU
    python -m benchmarks.gpu table benchmarks/records/*.jsonl         writes the table of docs/performance.md
    python -m benchmarks.gpu wheels FOLDER                            for a GPU machine without network: downloads what
                                                                      it may lack, for pip install --no-index --no-deps

Measurements run in the order of their importance, each in a separate process and with a time limit; what does not
fit into `--minutes` is not started. Each result is appended to `--output` as soon as it is known, so that neither a
failure nor a time limit loses the others; the table at the end compares them with their goals. Runs from a source tree
(PYTHONPATH=src) without Graft being installed. The exit code is 1 if a measurement failed.
"""

import argparse
import contextlib
import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
MARKS = ("<!-- GPU table: python -m benchmarks.gpu table -->", "<!-- end of the GPU table -->")


@dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        measurement: the measurement that it belongs to.
        what: what was measured.
        value: the figure; None if it failed.
        unit: of `value`.
        goal: the least acceptable value, or the largest with `at_most`.
        note: what else there is to know, such as an error.
    """

    measurement: str
    what: str
    value: float | None
    unit: str = ""
    goal: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        if self.value is None:
            return False
        return self.value <= self.goal if self.at_most else self.value >= self.goal


@dataclass(frozen=True)
class Bench:
    """Where and on what the measurements run.

    Attributes:
        device: "cuda" or "cpu".
        quick: tiny networks and few steps, to try the command out.
        data: folder of the data sets (hymenoptera_data, cifar10), or None.
        weights: file of VGG16's pretrained weights, or None for torchvision's.
        output: the file of results.
        batch_sizes: of the training steps.
    """

    device: str
    quick: bool
    data: Path | None
    weights: Path | None
    output: Path
    batch_sizes: tuple[int, ...] = (128, 256, 32)

    @property
    def model(self) -> str:
        return "vgg_mini" if self.quick else "vgg16"

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return 32 if self.quick else 224

    @property
    def steps(self) -> int:
        """Steps of each loop, warm-up included."""
        return 3 if self.quick else 30

    @property
    def accelerator(self) -> str:
        return "gpu" if self.device == "cuda" else self.device

    def set_words(self, name: str, embedded: str) -> list[str]:
        """The overrides that choose data set `name`, or an embedded set where there is no data folder."""
        if self.data is None:
            return [f"data={embedded}"]
        return [f"data={name}", f"paths.data={self.data}", "data.download=false"]

    def network_words(self) -> list[str]:
        """The overrides that choose the pretrained network."""
        if self.quick:
            return ["model=vgg_mini", "model.weights=bundled"]
        return ["model=vgg16", *([f"model.weights={self.weights}"] if self.weights else [])]

    def record(self, result: Result) -> None:
        """Append `result` to the output, and print it."""
        line = asdict(result) | {"reached": result.reached, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        with self.output.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(row(line), flush=True)


# -- measurements ----------------------------------------------------------------------------------------------


def card(bench: Bench) -> None:
    """Name, memory, matrix rate and memory bandwidth of the device."""
    import torch

    from benchmarks.training_step import matrix_rate, memory_rate
    from graft.tasks.run import machine, versions

    device = torch.device(bench.device)
    name, gigabytes = machine(), 0.0
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, gigabytes = f"{properties.name}, {machine()}", properties.total_memory / 2**30
    bench.record(Result("card", name, gigabytes, "GiB", note=json.dumps(versions())))
    side, size = (512, 2**24) if bench.quick else (8192, 2**31)
    rate = matrix_rate(device, side, seconds=0.2 if bench.quick else 1.0)
    bench.record(Result("card", "bf16 matrix product", rate / 1e12, "TFLOP/s"))
    bench.record(Result("card", "memory copied (read + written)", memory_rate(device, size) / 1e12, "TB/s"))


def tests(bench: Bench) -> None:
    """tests/gpu, in parallel processes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        workers = "2" if bench.quick else "12"
        words = [sys.executable, "-m", "pytest", "tests/gpu", "-n", workers, f"--junitxml={report}"]
        words += ["-k", "do_not_mix"] if bench.quick else []
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    skipped = 0
    for case in cases:
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped += case.find("skipped") is not None
        if problem is not None:
            bench.record(Result("tests", str(case.get("name")), None, note=(problem.text or "")[-3000:]))
        elif case.find("skipped") is None:
            bench.record(Result("tests", str(case.get("name")), float(case.get("time", "nan")), "s"))
    passed = sum(len(case) == 0 or {child.tag for child in case} <= {"system-out", "properties"} for case in cases)
    note = f"{skipped} skipped" if skipped else ""
    bench.record(Result("tests", f"passed of {len(cases)}", passed, goal=len(cases) - skipped, note=note))


def step(bench: Bench) -> None:
    """VGG16 fine-tuning at 224 pixels on synthetic images: Graft and other loops."""
    import torch

    from benchmarks import training_step as loops
    from graft.models.normalise import Normalise

    device = torch.device(bench.device)
    rate = loops.matrix_rate(device, 512 if bench.quick else 8192, seconds=0.2 if bench.quick else 1.0)
    for batch_size in bench.batch_sizes:
        steps = bench.steps * (2 if batch_size < 100 else 1)
        config = _training(bench, batch_size)
        splits = loops.batches_of_noise(config, steps)
        experiment, chosen = _assembled(config, splits)
        network = experiment.module.network
        flops = loops.flops_an_image(copy.deepcopy(network), bench.size)
        normalise = Normalise(experiment.module.preprocessing).to(device)
        few = [batch for batch, _ in zip(experiment.data.train_dataloader(), range(4), strict=False)]
        batches_on_device = [(batch.images.to(device), batch.labels.to(device)) for batch in few]

        def batches(
            steps: int, batches_on_device: Any = batches_on_device, normalise: Any = normalise
        ) -> Callable[[], Iterator[Any]]:
            """The input of every loop: uint8 images on the device, normalised in each step."""
            return lambda: (
                (normalise(images), labels)
                for images, labels in itertools.islice(itertools.cycle(batches_on_device), steps)
            )

        def fresh(network: Any = network) -> Any:
            return copy.deepcopy(network)

        slow = max(3, steps // 3)
        ways: dict[str, Callable[[], float]] = {
            "Graft": lambda: loops.by_graft(config, splits, chosen),  # noqa: B023 (called before the next turn)
            "by hand, bf16 channels-last": lambda: loops.by_loop(fresh(), batches(steps), device, loops.BEST),  # noqa: B023
            "plain Lightning": lambda: loops.by_lightning(fresh(), batches(steps), chosen),  # noqa: B023
            "timm's loop": lambda: loops.by_timm(fresh(), batches(steps), device),  # noqa: B023
            "plain TF32": lambda: loops.by_loop(fresh(), batches(slow), device, loops.Loop(tf32=True)),  # noqa: B023
            "plain fp32": lambda: loops.by_loop(fresh(), batches(slow), device, loops.PLAIN),  # noqa: B023
        }
        if batch_size == 128:
            faster = _training(bench, batch_size, "trainer.compile=true")
            ways["Graft, compile=true"] = lambda: loops.by_graft(faster, splits, chosen)  # noqa: B023
        seconds: dict[str, float] = {}
        title = f"{bench.model} step, batch {batch_size}"
        for name, way in ways.items():
            try:
                seconds[name] = way()
            except Exception as error:  # such as a package that is missing, or one of the compiler
                bench.record(Result("step", f"{title}: {name}", None, note=f"{type(error).__name__}: {error}"[:2000]))
                continue
            bench.record(Result("step", f"{title}: {name}", batch_size / seconds[name], "images/s"))
            _empty_cache()
        counted = batch_size == 128
        for ours in [name for name in seconds if name.startswith("Graft")]:
            share = flops * batch_size / seconds[ours] / rate
            goal = 0.5 if counted else None
            bench.record(Result("step", f"{title}: {ours}, share of the matrix rate", share, goal=goal))
            for name in [name for name in seconds if not name.startswith("Graft")]:
                ratio, goal = seconds[name] / seconds[ours], STEP_GOALS.get(name) if counted else None
                bench.record(Result("step", f"{title}: {ours} / {name}", ratio, goal=goal))


STEP_GOALS = {"by hand, bf16 channels-last": 0.98, "plain Lightning": 1.1, "timm's loop": 1.1}


def compiled(bench: Bench) -> None:
    """The same step of Graft with CUDA graphs, and compiled with small batches."""
    from benchmarks import training_step as loops

    for batch_size in bench.batch_sizes[:1] if bench.quick else (32, 128):
        for mode in ("true", "reduce-overhead") if batch_size < 100 else ("reduce-overhead",):
            config = _training(bench, batch_size, f"trainer.compile={mode}")
            _, chosen = _assembled(config, splits := loops.batches_of_noise(config, bench.steps))
            what = f"{bench.model} step, batch {batch_size}: Graft, compile={mode}"
            try:
                rate = batch_size / loops.by_graft(config, splits, chosen)
                bench.record(Result("compiled", what, rate, "images/s"))
            except Exception as error:  # of the compiler; the other mode may work
                bench.record(Result("compiled", what, None, note=f"{type(error).__name__}: {error}"[:2000]))
            _empty_cache()


def images(bench: Bench) -> None:
    """The same step on JPEGs, randomly cropped and flipped, next to the synthetic rate."""
    import numpy as np

    from benchmarks import training_step as loops
    from graft.data.images import ImageSet
    from graft.data.splits import Splits

    batch_size = bench.batch_sizes[0]
    with tempfile.TemporaryDirectory() as folder:
        paths = _photographs(bench, Path(folder))
        count = batch_size * bench.steps * (1 if bench.quick else 2)
        repeated = [paths[index % len(paths)] for index in range(count)]
        pictures = ImageSet([str(index) for index in range(count)], np.arange(count) % 2, paths=repeated)
        few = pictures.select(range(2))
        files = Splits(("one", "other"), pictures, few, few)
        config = _training(bench, batch_size)
        splits = loops.batches_of_noise(config, bench.steps)
        _, chosen = _assembled(config, splits)
        synthetic = batch_size / loops.by_graft(config, splits, chosen)
        bench.record(Result("images", f"{bench.model}, batch {batch_size}: synthetic", synthetic, "images/s"))
        for source, gigabytes in {"memory": 16, "disk": 0}.items():
            for augment in ("imagenet", "strong"):
                config = _training(bench, batch_size, f"augment={augment}", f"data.resident_gb={gigabytes}")
                config.augment.mixup = config.augment.cutmix = 0.0
                rate = batch_size / loops.by_graft(config, files, chosen)
                what = f"JPEGs from {source}, augment={augment}"
                bench.record(Result("images", what, rate, "images/s"))
                goal = 0.95 if augment == "imagenet" else None
                bench.record(Result("images", f"{what} / synthetic", rate / synthetic, goal=goal))
                _empty_cache()


def cifar10(bench: Bench, *words: str, what: str = "cifar10_speed") -> None:
    """The preset of examples/cifar10_speed in full."""
    example = ROOT / "examples" / "cifar10_speed"
    few = ["trainer.max_epochs=1", "data.batch_size=256"] if bench.quick else []
    words = ("experiment=cifar10_speed", *bench.set_words("cifar10", "digits"), *few, *words)
    found = _train(bench, f"hydra.searchpath=[file://{example / 'conf'}]", *words, cwd=example)
    summary = found.summary
    bench.record(Result("cifar10", f"{what}: seconds of training", found.training_seconds, "s", goal=15, at_most=True))
    bench.record(Result("cifar10", f"{what}: whole process", found.seconds, "s"))
    bench.record(Result("cifar10", f"{what}: test accuracy", summary["metrics"]["test/acc"], goal=0.90))


def cifar10_graphs(bench: Bench) -> None:
    """The preset cifar10_speed with CUDA graphs."""
    cifar10(bench, "trainer.compile=reduce-overhead", what="cifar10_speed, compile=reduce-overhead")


def cifar10_modern(bench: Bench) -> None:
    """The preset cifar10_vgg16_modern, for as long as is left."""
    epochs = "1" if bench.quick else "15"
    found = _train(
        bench, "experiment=cifar10_vgg16_modern", *bench.set_words("cifar10", "digits"), f"trainer.max_epochs={epochs}",
        *(["model=vgg_mini", "model.weights=null"] if bench.quick else []),
    )  # fmt: skip
    what = f"cifar10_vgg16_modern, {epochs} epochs"
    bench.record(Result("cifar10", f"{what}: seconds of training", found.training_seconds, "s"))
    bench.record(Result("cifar10", f"{what}: test accuracy", found.summary["metrics"]["test/acc"]))


def features(bench: Bench) -> None:
    """A frozen network on cached features, 15 epochs, as a whole process, against the plain loop."""
    words = [*bench.set_words("hymenoptera", "faces"), *bench.network_words()]
    epochs = 2 if bench.quick else 15
    plain = _timed("plain_loop", bench, *words, f"trainer.max_epochs={epochs}")
    bench.record(Result("features", f"plain loop, {epochs} epochs, whole process", plain["seconds"], "s"))
    bench.record(Result("features", "plain loop: validation accuracy", plain["accuracy"]))
    found = _train(
        bench, *words, *LAST_LAYER, "cache=features", "trainer.test=false", "review=none", "trainer.baseline=false",
        f"trainer.max_epochs={epochs}",
    )  # fmt: skip
    bench.record(Result("features", f"cached features, {epochs} epochs, whole process", found.seconds, "s"))
    bench.record(Result("features", "cached features: validation accuracy", found.summary["metrics"]["val/acc"]))
    bench.record(Result("features", "plain loop / cached features", plain["seconds"] / found.seconds, goal=25))


def headline(bench: Bench) -> None:
    """`python train.py model=vgg16 strategy=finetune`, with every default."""
    words = [*bench.set_words("hymenoptera", "faces"), *bench.network_words(), "strategy=finetune"]
    found = _train(bench, *words, *(["trainer.max_epochs=1"] if bench.quick else []))
    bench.record(Result("headline", "whole process", found.seconds, "s"))
    bench.record(Result("headline", "training", found.training_seconds, "s"))
    bench.record(Result("headline", "test accuracy", found.summary["metrics"]["test/acc"]))


def sweep(bench: Bench) -> None:
    """Four jobs at once on one card against one after the other."""
    epochs = 1 if bench.quick else 5
    words = [
        *bench.set_words("hymenoptera", "faces"), *bench.network_words(), "strategy=finetune", "seed=0,1,2,3",
        f"trainer={bench.accelerator}", f"trainer.max_epochs={epochs}", "review=none",
    ]  # fmt: skip
    at_once = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]
    together = _multirun(bench, *words, *at_once)
    bench.record(Result("sweep", f"four jobs of {epochs} epochs at once", together, "s"))
    in_turn = _multirun(bench, *words)
    bench.record(Result("sweep", f"four jobs of {epochs} epochs in turn", in_turn, "s"))
    bench.record(Result("sweep", "in turn / at once", in_turn / together, goal=2))


def memory(bench: Bench) -> None:
    """data.batch_size=auto against the memory there is; peak memory of a step against the plain loop."""
    batch_size = bench.batch_sizes[0]
    peaks: dict[str, float] = {}
    for way in ("hand", "graft"):
        child = ["-m", "benchmarks.memory", "--child", way, bench.model, str(bench.size), str(batch_size)]
        done = _run([sys.executable, *child])
        peaks[way] = float(done.split()[-1]) / 1024
        bench.record(Result("memory", f"peak at batch {batch_size}: {way}", peaks[way], "GiB"))
    bench.record(Result("memory", "peak of Graft / by hand", peaks["graft"] / peaks["hand"], goal=1.1, at_most=True))
    words = [*bench.set_words("cifar10", "digits"), f"model={bench.model}", "strategy=scratch", "data.batch_size=auto"]
    words += [f"data.preprocess.input_size={bench.size}", f"data.preprocess.resize_size={bench.size}"]
    words += ["trainer.max_steps=4", "trainer.max_epochs=1", "trainer.limit_val_batches=1", "trainer.test=false"]
    found = _train(bench, *words, "callbacks.checkpoint=last", "review=none")
    (note,) = (note for note in found.summary["notes"] if "data.batch_size=auto" in note)
    size = float(note.split("=auto: ")[1].split()[0].strip(","))
    bench.record(Result("memory", "data.batch_size=auto", size, note=note))


WHEELS = ("hydra-core", "omegaconf", "hydra-joblib-launcher", "rich", "markdown-it-py", "mdurl", "torchcam")
"""Pure Python packages that Graft needs, besides those that come with PyTorch, Lightning, timm and scikit-image."""


def write_wheels(folder: str) -> None:
    """Download WHEELS, in the versions that are installed here."""
    wanted = [f"{name}=={version(name)}" for name in WHEELS]
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, *wanted], check=True)


MEASUREMENTS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "card": (card, 60),
    "tests": (tests, 150),
    "step": (step, 120),
    "images": (images, 120),
    "compiled": (compiled, 180),
    "cifar10": (cifar10, 150),
    "features": (features, 150),
    "headline": (headline, 90),
    "sweep": (sweep, 200),
    "memory": (memory, 90),
    "cifar10_graphs": (cifar10_graphs, 180),
    "cifar10_modern": (cifar10_modern, 240),
}
"""Each measurement, in the order of their worth, with the most seconds that it may take."""


LAST_LAYER = (
    "strategy=feature_extract", "freeze=backbone", "augment=none", "scheduler=none", "optimizer.lr=0.001",
)  # fmt: skip
"""What the plain loop and Graft train on ants and bees."""


# -- how they are run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainRun:
    """A finished `graft train`: seconds of the whole process, and its summary."""

    seconds: float
    summary: dict[str, Any]

    @property
    def training_seconds(self) -> float:
        """Seconds of the epochs alone."""
        return float(self.summary["training_seconds"])


def _run(words: Sequence[str], cwd: Path | None = None) -> str:
    """The output of a command, which goes to standard error too, with the seconds since its start.

    Raises RuntimeError with the end of the output where the command failed.
    """
    started, lines = time.perf_counter(), []
    process = subprocess.Popen(words, cwd=cwd or ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        print(f"    {time.perf_counter() - started:6.1f} s  {line.rstrip()}"[:160], file=sys.stderr, flush=True)
    if process.wait():
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}\n{''.join(lines)[-3000:]}")
    return "".join(lines)


def _train(bench: Bench, *words: str, cwd: Path | None = None) -> TrainRun:
    """`graft train WORDS` on the device, with a new run folder and an empty cache.

    `cwd` is the working directory, which may have packages that the words name; by default an empty one.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = (f"hydra.run.dir={folder}/run", f"paths.cache={folder}/cache", *words)
        command = [sys.executable, "-m", "graft.cli", "train", f"trainer.accelerator={bench.accelerator}", *words]
        started = time.perf_counter()
        _run(command, cwd=cwd or Path(folder))
        seconds = time.perf_counter() - started
        return TrainRun(seconds, json.loads(Path(folder, "run", "summary.json").read_text()))


def _multirun(bench: Bench, *words: str) -> float:
    """Seconds of `graft train -m WORDS`, all of whose jobs must succeed."""
    with tempfile.TemporaryDirectory() as folder:
        words = (f"paths.outputs={folder}", f"hydra.sweep.dir={folder}/sweep", *words)
        started = time.perf_counter()
        _run([sys.executable, "-m", "graft.cli", "train", "-m", *words], cwd=Path(folder))
        seconds = time.perf_counter() - started
        found = [json.loads(file.read_text())["status"] for file in Path(folder, "sweep").glob("*/summary.json")]
        if found != ["finished"] * 4:
            raise RuntimeError(f"four jobs ended as {found}")
        return seconds


def _timed(measurement: str, bench: Bench, *words: str) -> dict[str, float]:
    """What a helper process prints as its last line, as JSON; with the seconds of the whole process."""
    started = time.perf_counter()
    out = _run([sys.executable, "-m", "benchmarks.gpu", measurement, "--device", bench.device, *words])
    return json.loads(out.splitlines()[-1]) | {"seconds": time.perf_counter() - started}


def plain_loop(device: str, words: Sequence[str]) -> None:
    """The notebooks' loop on frozen features, fp32, as they write it for a GPU; prints its accuracy as JSON."""
    import torch

    from benchmarks.common import composed
    from benchmarks.whole_run import plain
    from graft.tasks.data import open_data

    config = composed(*words, *LAST_LAYER)
    splits = open_data(config)
    timed = plain(config, splits, config.trainer.max_epochs, workers=4, device=torch.device(device))
    print(json.dumps({"accuracy": timed.accuracy}))


def _training(bench: Bench, batch_size: int, *words: str) -> Any:
    """The configuration of one epoch of training steps."""
    from benchmarks.common import training
    from benchmarks.training_step import LR

    return training(
        bench.model, bench.size, batch_size, f"optimizer.lr={LR}", "optimizer.momentum=0.9", "optimizer.weight_decay=0",
        f"trainer.accelerator={bench.accelerator}", "trainer.benchmark=true", "review=none", *words,
    )  # fmt: skip


def _assembled(config: Any, splits: Any) -> tuple[Any, Any]:
    """(the experiment of a configuration, its device), without Lightning's chatter."""
    import logging

    from graft.system.device import choose_device
    from graft.tasks.build import assemble
    from graft.tasks.trainer import silence_lightning

    silence_lightning()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        return assemble(config, splits, Path(folder)), choose_device(config.trainer)


def _photographs(bench: Bench, folder: Path) -> list[Path]:
    """The training photographs of ants and bees, or noise where there are none."""
    from benchmarks.images_in import photographs

    if bench.data is not None:
        found = sorted((bench.data / "hymenoptera_data" / "train").rglob("*.jpg"))
        if found:
            return found
    made = photographs(folder, 2).files
    return list(made)


def _empty_cache() -> None:
    """Return the GPU memory of what has been measured."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure(name: str, bench: Bench) -> None:
    """Take one measurement in this process; a failure becomes a result."""
    try:
        MEASUREMENTS[name][0](bench)
    except Exception as error:
        import traceback

        traceback.print_exc()
        bench.record(Result(name, "failed", None, note=f"{type(error).__name__}: {error}"[-3000:]))
        sys.exit(1)


def measure_in_subprocess(name: str, bench: Bench, words: Sequence[str], limit: float) -> bool:
    """Take one measurement in a separate process, ended after `limit` seconds; returns whether it succeeded."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", "measure", name, *words], cwd=ROOT, start_new_session=True
    )
    try:
        return process.wait(limit) == 0
    except subprocess.TimeoutExpired:
        bench.record(Result(name, "stopped at its time limit", None, note=f"after {limit:.0f} s"))
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
        process.wait()


# -- results ---------------------------------------------------------------------------------------------------


def row(result: Mapping[str, Any]) -> str:
    """A result as a line for the terminal."""
    value = "failed" if result["value"] is None else f"{result['value']:,.3f} {result['unit']}".rstrip()
    goal = "" if result["goal"] is None else f"goal {'≤' if result['at_most'] else '≥'} {result['goal']:g}"
    verdict = {True: "reached", False: "MISSED", None: ""}[result["reached"]]
    note = f"  ({result['note'].splitlines()[-1][:150]})" if result["value"] is None and result["note"] else ""
    return f"{result['measurement']:<15} {result['what']:<66} {value:>20}  {goal:<12} {verdict}{note}"


def read_results(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The results in `files`; of what was measured again, the last."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for file in files:
        for line in file.read_text().splitlines():
            result = json.loads(line)
            latest[result["measurement"], result["what"]] = result
    return list(latest.values())


def write_table(files: Sequence[Path], page: Path = PAGE) -> None:
    """Replace the table between the marks of `page` by the results in `files`."""
    lines = ["| what | value | goal | |", "|---|---|---|---|"]
    for result in read_results(files):
        if result["measurement"] == "tests" and result["goal"] is None and result["value"] is not None:
            continue
        value = "failed" if result["value"] is None else f"{result['value']:,.4g} {result['unit']}".rstrip()
        goal = "" if result["goal"] is None else f"{'≤' if result['at_most'] else '≥'} {result['goal']:g}"
        verdict = {True: "reached", False: "**missed**", None: ""}[result["reached"]]
        lines.append(f"| {result['measurement']}: {result['what']} | {value} | {goal} | {verdict} |")
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text("\n".join([before + MARKS[0], "", *lines, "", MARKS[1] + after]))


def main() -> None:
    search = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT), *search])  # for commands run elsewhere
    words = sys.argv[1:]
    if words[:1] == ["table"]:
        write_table([Path(word) for word in words[1:]])
        return
    if words[:1] == ["wheels"]:
        write_wheels(words[1])
        return
    if words[:1] == ["plain_loop"]:
        plain_loop(words[2], words[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), help="folder of the data sets (default data)")
    parser.add_argument("--weights", type=lambda text: Path(text).resolve(), help="file of VGG16's pretrained weights")
    parser.add_argument("--output", type=lambda text: Path(text).resolve(), default=Path("gpu.jsonl").resolve())
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 256, 32], help="of the training steps")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, few steps: tries the command out")
    single = words[1] if words[:1] == ["measure"] else None
    arguments = parser.parse_args(words[2:] if single else words)
    data = arguments.data or (Path("data").resolve() if Path("data").is_dir() else None)
    sizes = (8,) if arguments.quick else tuple(arguments.batch_sizes)
    bench = Bench(arguments.device, arguments.quick, data, arguments.weights, arguments.output, sizes)
    if single:
        measure(single, bench)
        return
    bench.output.parent.mkdir(parents=True, exist_ok=True)
    started, succeeded = time.monotonic(), True
    skipped = []
    for name in arguments.only:
        left = 60 * arguments.minutes - (time.monotonic() - started)
        if left < 15:
            skipped.append(name)
            continue
        limit = MEASUREMENTS[name][1] * (5 if bench.quick else 1)
        succeeded &= measure_in_subprocess(name, bench, words, min(left, limit))
        print(f"[{time.monotonic() - started:.0f} s]", flush=True)
    print("\n" + "\n".join(map(row, read_results([bench.output]))))
    if skipped:
        print(f"not started for lack of time: {', '.join(skipped)}")
    sys.exit(not succeeded)


if __name__ == "__main__":
    main()
