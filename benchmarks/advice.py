"""How good the advice of `graft advise` is: every candidate that it ranks is trained, and compared with its prediction.

    python -m benchmarks.advice train --data DATA --weights WEIGHTS --minutes 60     every candidate on every set
    python -m benchmarks.advice advise --data DATA --weights WEIGHTS                 the probes of the same sets
    python -m benchmarks.advice fit                 src/graft/advice/gains.json from the records
    python -m benchmarks.advice table               the table of docs/advise.md from the records

Each run is appended to benchmarks/records/advice.jsonl as soon as it is done; what is recorded is not run again. DATA
holds hymenoptera_data, flower_photos, mask and cifar10 (unpacked), WEIGHTS the files of `WEIGHTS`. Accuracies are of
images that neither training nor advice has seen; seconds are of processor time, so that other work does not count.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graft
from benchmarks.defaults import link_masks
from graft.advice.candidates import Candidate, Source, candidates_of, sources
from graft.config.commands import AdviseConfig
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.probing.features import pretrained
from graft.tasks import advising
from graft.tasks.data import open_data

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records" / "advice.jsonl"

WEIGHTS: Mapping[str, str] = {
    "vgg_mini": "bundled",
    "squeezenet1_1": "{weights}/squeezenet1_1-imagenet.safetensors",
    "squeezenet1_0": "{weights}/squeezenet1_0-imagenet.safetensors",
    "vgg16": "{weights}/vgg16-features.safetensors",
}
SIZES: Mapping[str, tuple[str, ...]] = {
    "squeezenet1_1": ("data.preprocess.input_size=96", "data.preprocess.resize_size=110"),
    "squeezenet1_0": ("data.preprocess.input_size=96", "data.preprocess.resize_size=110"),
    "vgg16": ("data.preprocess.input_size=64", "data.preprocess.resize_size=74", "model.classifier=pooled"),
}
"""Overrides of a network: images small enough for a grid of a hundred runs on a processor."""

TEST = 80
"""Test images of each class of a large set."""

RUN = (
    "trainer.max_epochs=6", "data.batch_size=16", "data.num_workers=0", "trainer.limit_test_batches=25", "seed=0",
    "data.val_fraction=0", "callbacks.checkpoint=last",
)  # fmt: skip
"""Overrides of every run and of the advice on it; the rest is Graft's defaults. The last epoch is tested: which of them is
the best on so few validation images would be a matter of luck."""

QUIET = (
    "logger=none",
    "callbacks.progress=none",
    "trainer.baseline=false",
    "review=none",
    "trainer.limit_val_batches=1",
)


def link_folders(images: Mapping[str, Path], folder: Path, train: int, test: int) -> None:
    """Class folders of links: of each class the first `test` images by name to test, and the next `train` to train.

    Args:
        images: class → folder with its images.
        folder: for train/CLASS and test/CLASS.
        train, test: number of images of each class.
    """
    for name, source in images.items():
        files = sorted(source.glob("*.jpg"))[: test + train]
        for number, file in enumerate(files):
            link = folder / ("test" if number < test else "train") / name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


def flowers(data: Path, folder: Path, images: int) -> tuple[str, ...]:
    classes = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    link_folders({name: data / "flower_photos" / name for name in classes}, folder, images // 5, TEST)
    return ("data=folder", f"data.root={folder}")


def cifar10(data: Path, folder: Path, images: int) -> tuple[str, ...]:
    pictures = {each.name: each for each in sorted((data / "cifar10" / "train").iterdir())}
    link_folders(pictures, folder, images // 10, TEST)
    return ("data=folder", f"data.root={folder}")


def masks(data: Path, folder: Path, images: int) -> tuple[str, ...]:
    link_masks(data, folder)
    return ("data=folder", f"data.root={folder}", f"data.shots={min(images // 3, 120)}")


SETS: Mapping[str, Callable[[Path, Path, int], tuple[str, ...]]] = {
    "flowers": flowers,
    "ants and bees": lambda data, folder, images: ("data=hymenoptera", f"paths.data={data}"),
    "faces": lambda data, folder, images: ("data=faces",),
    "digits": lambda data, folder, images: ("data=digits", f"data.shots={images // 10}"),
    "CIFAR-10": cifar10,
    "masks": masks,
}


@dataclass(frozen=True)
class Options:
    """Arguments of the command line."""

    data: Path
    weights: Path
    images: int
    minutes: float


def networks(options: Options) -> Iterator[Source]:
    """The networks with their overrides."""
    for name, weights in WEIGHTS.items():
        [source], _ = sources([name], {name: weights.format(weights=options.weights)})
        for override in SIZES.get(name, ()):
            source = source.with_override(override)
        yield source


def candidates(source: Source) -> list[Candidate]:
    """The candidates of a network."""
    experiment = graft.compose("data=faces", *source.overrides)
    network = pretrained(typed(experiment.config, TrainConfig), 2)
    return candidates_of(source, [stage.name for stage in network.backbone])


def recorded(kind: str) -> list[dict[str, Any]]:
    """The records of a kind so far."""
    rows = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    return [row for row in rows if row["kind"] == kind]


def append(row: Mapping[str, Any]) -> None:
    """Add a record."""
    with RECORDS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def train(options: Options) -> None:
    """Train every candidate that is not recorded yet, the fast networks first, until the minutes are over."""
    done = {(row["set"], row["model"], row["strategy"], row["cut"]) for row in recorded("run")}
    started = time.monotonic()
    for source in networks(options):
        chosen = candidates(source)
        for name, prepare in SETS.items():
            with tempfile.TemporaryDirectory() as folder:
                words = prepare(options.data, Path(folder) / "images", options.images)
                for candidate in chosen:
                    key = (name, source.name, candidate.strategy, candidate.cut)
                    if key in done or time.monotonic() - started > 60 * options.minutes:
                        continue
                    append(
                        dict(zip(("set", "model", "strategy", "cut"), key, strict=True))
                        | measured(candidate, words, Path(folder))
                    )


def measured(candidate: Candidate, words: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """The record of a run of a candidate."""
    began, started = time.process_time(), time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as run:
        finished = graft.train(
            *words, *RUN, *QUIET, *candidate.overrides, f"paths.cache={run}/cache", folder=Path(run) / "run", echo=False
        )
        counts = {part: sum(each.values()) for part, each in finished.summary["data"]["counts"].items()}
        return {
            "kind": "run", "stages": candidate.stages, "frozen": len(candidate.frozen),
            "test/acc": round(finished.metrics["test/acc"], 4), "val/acc": round(finished.metrics["val/acc"], 4),
            "classes": len(finished.classes), **counts, "epochs": finished.summary["epochs"],
            "training_seconds": finished.summary["training_seconds"],
            "seconds": round(time.process_time() - began, 1), "wall": round(time.monotonic() - started, 1),
        }  # fmt: skip


def advise(options: Options) -> None:
    """Record what `graft advise` finds on each set, with the overrides of the runs."""
    done = {row["set"] for row in recorded("advice")}
    found = list(networks(options))
    for name, prepare in SETS.items():
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            words = [
                *prepare(options.data, Path(folder) / "images", options.images),
                *RUN,
                f"paths.cache={folder}/cache",
            ]
            config = typed(graft.compose(*words, task="advise").config, AdviseConfig)
            began = time.process_time()
            advice = advising.run(config, open_data(config), found, [], advising.Command(tuple(words)), Path(folder))
            seconds = round(time.process_time() - began, 1)
        values = {key: value for key, value in advice.to_json().items() if key in ("networks", "counts", "candidates")}
        for each in values["candidates"]:
            del each["command"]
        append({"kind": "advice", "set": name, "seconds": seconds, "classes": len(advice.record["classes"]), **values})


COMMANDS: Mapping[str, Callable[[Options], None]] = {"train": train, "advise": advise}


def main() -> None:
    """The command line; see above."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.advice", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--images", type=int, default=240, help="training images of a set")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after these minutes")
    arguments = parser.parse_args()
    options = Options(arguments.data.absolute(), arguments.weights.absolute(), arguments.images, arguments.minutes)
    COMMANDS[arguments.command](options)


if __name__ == "__main__":
    main()
