"""What the defaults for small data sets rest on: accuracy against augmentation, and against cached views.

    python -m benchmarks.defaults run augmentation --data DATA --weights WEIGHTS      fine-tuning
    python -m benchmarks.defaults run views --data DATA --weights WEIGHTS             frozen backbone
    python -m benchmarks.defaults run statistics              BatchNorm of few images
    python -m benchmarks.defaults table                                               docs/defaults.md from the records

Each run is appended to benchmarks/records/defaults.jsonl as soon as it is done; what is recorded is not run again.
DATA holds hymenoptera_data, flower_photos and mask, WEIGHTS squeezenet1_1-imagenet.safetensors. Seconds are of
processor time, so that other work on the machine does not count.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graft
from graft.system.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records" / "defaults.jsonl"
PAGE = ROOT / "docs" / "defaults.md"

SEEDS = (0, 1, 2)
SQUEEZENET = (
    "model=squeezenet1_1", "model.weights={weights}/squeezenet1_1-imagenet.safetensors", "paths.data={data}",
    "data.preprocess.input_size=160", "data.preprocess.resize_size=182",
)  # fmt: skip
SETS: Mapping[str, tuple[str, ...]] = {
    "ants and bees, 40 of each": ("data=hymenoptera", "data.shots=40", *SQUEEZENET),
    "flowers, 16 of each": ("data=flowers", "data.shots=16", *SQUEEZENET),
    "masks, 27 of each": ("data=folder", "data.root={masks}", "data.shots=27", *SQUEEZENET),
    "faces, 10 of each": ("data=faces", "data.shots=10", "model=vgg_mini"),
    "digits, 10 of each": ("data=digits", "data.shots=10", "model=vgg_mini"),
}
CROP = ("augment=imagenet", "augment.random_resized_crop.scale=[{scale},1]")
AUGMENTATIONS: Mapping[str, tuple[str, ...]] = {
    "none": ("augment=none",),
    "crops of 8 to 100 %, flips": tuple(word.format(scale=0.08) for word in CROP),
    "crops of 35 to 100 %, flips": tuple(word.format(scale=0.35) for word in CROP),
    "crops of 60 to 100 %, flips": tuple(word.format(scale=0.6) for word in CROP),
}
VIEWS: Mapping[str, tuple[str, ...]] = {
    "no augmentation": ("augment=none",),
    **{
        f"{views} views": (*AUGMENTATIONS["crops of 35 to 100 %, flips"], f"cache.views={views}")
        for views in (2, 4, 8, "all")
    },
}
STATISTICS: Mapping[str, tuple[str, ...]] = {
    each: (f"strategy.batch_norm_statistics={each}", "augment=basic") for each in ("update", "keep")
}
MINIATURES: Mapping[str, tuple[str, ...]] = {
    f"{data}, {shots} of each": (f"data={data}", f"data.shots={shots}", "model=vgg_mini")
    for data in ("faces", "digits")
    for shots in (5, 20, 50)
}


@dataclass(frozen=True)
class Table:
    """Runs that differ in one option: every option on every set, for each number of epochs and seed."""

    title: str
    options: Mapping[str, tuple[str, ...]]
    epochs: tuple[int, ...]
    strategy: str
    sets: Mapping[str, tuple[str, ...]]


TABLES: Mapping[str, Table] = {
    "augmentation": Table("Augmentation of few images, fine-tuned", AUGMENTATIONS, (3, 10, 30), "finetune", SETS),
    "views": Table("Cached views of a frozen backbone", VIEWS, (10, 30), "feature_extract", SETS),
    "statistics": Table(
        "Statistics of BatchNorm layers, fine-tuned: averaged over the training batches, or those of the weights",
        STATISTICS, (10, 30), "finetune", MINIATURES,
    ),
}  # fmt: skip
QUIET = (
    "logger=none", "callbacks.progress=none", "callbacks.checkpoint=last", "trainer.baseline=false", "review=none",
    "data.val_fraction=0", "trainer.limit_val_batches=1", "data.num_workers=0",
)  # fmt: skip


def link_masks(data: Path, folder: Path, train: Collection[str] | None = None) -> None:
    """Three classes of the mask set, whose folders are persons, as class folders: 411 training images, 138 to test.

    Args:
        data: holds mask.
        folder: for train/CLASS and test/CLASS.
        train: names of the folders to train on; None: those whose number is below 500.
    """
    for picture in sorted(data.glob("mask/*/*.jpg")):
        person = picture.parent.name
        trained = int(person.split("_")[0].split("-")[0]) < 500 if train is None else person in train
        if picture.stem in ("normal", "mask1", "incorrect_mask"):
            link = folder / ("train" if trained else "test") / picture.stem / f"{person}.jpg"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(picture.resolve())


def recorded() -> list[dict[str, Any]]:
    """All runs so far."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def run(table: str, data: str, weights: str) -> None:
    """Train what is not recorded yet of a table, the short runs first."""
    chosen = TABLES[table]
    done = {(each["table"], each["set"], each["option"], each["epochs"], each["seed"]) for each in recorded()}
    for count, name, seed, option in itertools.product(chosen.epochs, chosen.sets, SEEDS, chosen.options):
        key = (table, name, option, count, seed)
        if key in done:
            continue
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            masks = Path(folder) / "masks"
            if "masks" in name:
                link_masks(Path(data), masks)
            words = [word.format(data=data, weights=weights, masks=masks) for word in chosen.sets[name]]
            finished = graft.train(
                *words, *chosen.options[option], *QUIET, f"strategy={chosen.strategy}", f"trainer.max_epochs={count}",
                f"seed={seed}", f"paths.cache={folder}/cache", folder=Path(folder) / "run", echo=False,
            )  # fmt: skip
            row = dict(zip(("table", "set", "option", "epochs", "seed"), key, strict=True))
            row |= {name: round(finished.metrics[name], 4) for name in ("train/acc", "test/acc", "test/loss")}
        row["seconds"] = round(time.process_time() - started, 1)
        with RECORDS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


INTRODUCTION = """# What the defaults rest on

Made by `python -m benchmarks.defaults table` from benchmarks/records/defaults.jsonl: test accuracy, mean ± standard
deviation over three seeds, after the last epoch of the default command (`strategy=finetune` or
`strategy=feature_extract`, SGD at 0.01, cosine). Photographs: SqueezeNet 1.1 with ImageNet weights at 160 pixels; faces
and digits: the embedded sets, `vgg_mini` with its bundled weights. "mean" is that of the sets.
Digits are not flipped.
"""


def rows_of(table: Table, records: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """A row per set with a cell per option, and their mean."""
    options, means = list(table.options), defaultdict[str, list[float]](list)
    for name in table.sets:
        cells = []
        for option in options:
            found = [each["test/acc"] for each in records if each["set"] == name and each["option"] == option]
            if len(found) < len(SEEDS):
                cells.append("–")
                continue
            means[option].append(statistics.mean(found))
            cells.append(f"{means[option][-1]:.3f} ± {statistics.stdev(found):.3f}")
        yield [name, *cells]
    yield ["mean", *(f"{statistics.mean(means[option]):.3f}" if means[option] else "–" for option in options)]
    for title, key in (("training accuracy, mean", "train/acc"), ("seconds of a run, mean", "seconds")):
        values = {option: [each[key] for each in records if each["option"] == option] for option in options}
        yield [title, *(f"{statistics.mean(values[option]):.3g}" if values[option] else "–" for option in options)]


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """docs/defaults.md."""
    lines = [INTRODUCTION]
    for name, table in TABLES.items():
        lines.append(f"## {table.title}\n")
        for count in table.epochs:
            chosen = [each for each in records if each["table"] == name and each["epochs"] == count]
            if not chosen:
                continue
            lines += [f"| {count} epochs | {' | '.join(table.options)} |", f"|---|{'---|' * len(table.options)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows_of(table, chosen)]
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("name", nargs="?", choices=tuple(TABLES), help="of the table to run")
    parser.add_argument("--data", default="data")
    parser.add_argument("--weights", default="weights")
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.name, arguments.data, arguments.weights)
    else:
        write_atomically(PAGE, page(recorded()).encode())
