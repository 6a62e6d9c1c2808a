"""How well `graft improve` finds wrong labels and forecasts accuracy; the tables of docs/improve.md.

    python -m benchmarks.improvement run --data DATA --weights WEIGHTS --cache CACHE
    python -m benchmarks.improvement table                                    prints the Markdown from the records

DATA holds flower_photos and hymenoptera_data, and cifar10 unpacked, WEIGHTS the files of NETWORKS. Each record is
appended to benchmarks/records/improvement.jsonl as soon as it is there; what is recorded is not run again. Features are
computed once, about 20 ms an image and network on a core; the rest takes minutes.

Labels are changed at random to another class, with a seed, among all images of a set. "found" is the share of the
changed labels among the first proposals, as many as were changed and twice as many. "accuracy" is that of a head on
frozen features that is fitted to four fifths of the images with these labels and tested on the untouched labels of the
others: with the changed labels, after a person has accepted the right ones among twice as many proposals as labels were
changed, and with the true labels. A forecast is made from a seeded part of a set and compared with heads that are
fitted to larger parts and tested on all other images.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from graft.config.composing import compose_config
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.improvement.label_errors import find_label_errors, judged, spread_out
from graft.improvement.learning_curve import LEVEL, learning_curves
from graft.improvement.neighbours import directions, find_neighbours, voters
from graft.probing.features import pretrained, stage_features
from graft.probing.heads import logistic, strengthened
from graft.tasks.checks import settle
from graft.tasks.data import open_data

RECORDS = Path(__file__).resolve().parent / "records" / "improvement.jsonl"

SEEDS = (0, 1, 2)
FRACTIONS = (0.05, 0.1)
FOLDS = 5
STRENGTH = 0.01
"""Of the heads whose accuracy is compared before and after."""

Matrix = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

NETWORKS: Mapping[str, tuple[str, ...]] = {
    "squeezenet1_1": ("model=squeezenet1_1", "model.weights={weights}/squeezenet1_1-imagenet.safetensors"),
    "squeezenet1_0": ("model=squeezenet1_0", "model.weights={weights}/squeezenet1_0-imagenet.safetensors"),
    "vgg16": (
        "model=vgg16", "model.classifier=pooled", "model.weights={weights}/vgg16-features.safetensors",
    ),
}  # fmt: skip
"""Name -> its overrides."""

COMBINATIONS = (("squeezenet1_1",), ("squeezenet1_1", "squeezenet1_0"), ("squeezenet1_1", "squeezenet1_0", "vgg16"))


@dataclass(frozen=True)
class Forecasts:
    """What is forecast of a set: from this number of images to these."""

    start: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Set:
    """A data set of the benchmark.

    Attributes:
        words: overrides that choose it.
        combinations: of networks whose features judge its labels together; the first forecasts.
        images: largest number of images, a stratified sample of which is used.
        merged: the new class of each class; none: as they are.
        changed: whether labels are changed.
        forecasts: from one or more numbers of images.
    """

    words: tuple[str, ...]
    combinations: tuple[tuple[str, ...], ...]
    images: int | None = None
    merged: tuple[int, ...] = ()
    changed: bool = False
    forecasts: tuple[Forecasts, ...] = ()


CIFAR10 = ("data=folder", "data.root={data}/cifar10/train")

SETS: Mapping[str, Set] = {
    "flowers": Set(
        ("data=flowers",), COMBINATIONS, changed=True,
        forecasts=(Forecasts(800, (1500, 2970)), Forecasts(1500, (2970,))),
    ),
    "hymenoptera": Set(("data=hymenoptera",), COMBINATIONS, changed=True, forecasts=(Forecasts(160, (240, 320)),)),
    "digits": Set(("data=digits",), COMBINATIONS[:1], forecasts=(Forecasts(350, (700, 1400)),)),
    "cifar10": Set(CIFAR10, COMBINATIONS[:1], images=3000, forecasts=(Forecasts(600, (1200, 2400)),)),
    "cifar10-large": Set(
        CIFAR10, COMBINATIONS[:1], images=12_000, forecasts=(Forecasts(2000, (4000, 8000)), Forecasts(4000, (8000,))),
    ),
    "cifar10-animals": Set(
        CIFAR10, COMBINATIONS[:1], images=6000, merged=(0, 0, 1, 1, 1, 1, 1, 1, 0, 0),
        forecasts=(Forecasts(800, (1600, 3200)),),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Features:
    """The features of a set at the last two stages of each network before the head, and its labels."""

    of: Mapping[str, list[Matrix]]
    labels: Labels
    classes: int

    def joined(self, networks: Sequence[str], stage: int = -1) -> Matrix:
        """The features of several networks at the end (-1) or a stage before (-2), [N, D]."""
        return np.concatenate([spread_out(self.of[name][stage]) for name in networks], axis=1)


@cache
def features_of(name: str, networks: tuple[str, ...], data: str, weights: str, folder: str) -> Features:
    """The features of all images of a set, test images included; computed once, and kept in `folder`."""
    chosen = SETS[name]
    found: dict[str, list[Matrix]] = {}
    labels = np.zeros(0, np.int64)
    classes = 0
    for network in networks:
        words = [word.format(data=data, weights=weights) for word in (*chosen.words, *NETWORKS[network])]
        common = [f"paths.data={data}", f"paths.cache={folder}", "strategy=feature_extract", "data.num_workers=0"]
        config = settle(typed(compose_config("train", [*words, *common]), TrainConfig))
        splits = open_data(config)
        images, classes = splits.part("all"), len(splits.classes)
        images = images.select(np.argsort(np.array(images.names), kind="stable"))
        if chosen.images is not None and len(images) > chosen.images:
            random = StratifiedShuffleSplit(1, train_size=chosen.images, random_state=0)
            images = images.select(np.sort(next(random.split(images.labels, images.labels))[0]))
        file = Path(folder) / f"{name}-{network}.npz"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            built = pretrained(config, classes)
            stages = stage_features(config, built, images, splits.source, stages=built.backbone[-2:-1]).stages
            np.savez(file, *stages.values())
        with np.load(file) as stored:
            found[network], labels = list(stored.values()), images.labels.astype(np.int64)
    if chosen.merged:
        labels, classes = np.array(chosen.merged)[labels], max(chosen.merged) + 1
    return Features(found, labels, classes)


def changed_labels(labels: Labels, classes: int, fraction: float, seed: int) -> tuple[Labels, Labels]:
    """(labels of which a fraction is changed to another class, indices of the changed ones)."""
    random = np.random.RandomState(seed)
    chosen = random.choice(len(labels), round(fraction * len(labels)), replace=False)
    given = labels.copy()
    given[chosen] = (labels[chosen] + random.randint(1, classes, len(chosen))) % classes
    return given, chosen


def found_share(suspects: Labels, changed: Labels, times: int) -> float:
    """The share of the changed labels among the first suspects, `times` as many."""
    return float(np.isin(suspects[: times * len(changed)], changed).sum() / len(changed))


def accuracy(features: Matrix, given: Labels, truth: Labels) -> float:
    """Accuracy by the true labels of heads that are fitted to given ones, by five-fold cross-validation."""
    correct = []
    for fit, rest in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, truth):
        scale = StandardScaler().fit(features[fit])
        head = strengthened(scale.transform(features[fit]), given[fit], STRENGTH)
        best = head.predict_proba(scale.transform(features[rest])).argmax(axis=1)
        correct.append(head.classes_[best] == truth[rest])
    return float(np.concatenate(correct).mean())


def label_records(name: str, options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Share of changed labels that is found, and accuracy before and after."""
    for networks in SETS[name].combinations:
        for fraction, seed in itertools.product(FRACTIONS, SEEDS):
            key = f"labels {name} {'+'.join(networks)} {fraction} {seed}"
            if key in done:
                continue
            features = features_of(name, networks, options.data, options.weights, options.cache)
            joined, truth, lower = features.joined(networks), features.labels, features.joined(networks, -2)
            given, changed = changed_labels(truth, features.classes, fraction, seed)
            neighbours = find_neighbours(directions(joined), count=voters(len(joined), features.classes))
            probabilities = judged(joined, given, neighbours, features.classes, folds=FOLDS, lower=lower)
            errors = find_label_errors(probabilities, given)
            first = errors.suspects[: 2 * len(changed)]
            accepted = given.copy()
            accepted[first] = np.where(np.isin(first, changed), truth[first], given[first])  # a person decides rightly
            yield {
                "key": key, "kind": "labels", "set": name, "networks": list(networks), "fraction": fraction,
                "seed": seed, "images": len(truth), "changed": len(changed), "estimated": round(errors.estimated, 1),
                "found": found_share(errors.suspects, changed, 1),
                "found_twice": found_share(errors.suspects, changed, 2),
                "before": accuracy(joined, given, truth), "after": accuracy(joined, accepted, truth),
                "true": accuracy(joined, truth, truth),
            }  # fmt: skip


TESTED = 4000
"""Number of predictions that an accuracy is the mean of, at least, where that takes no more than `DRAWS` draws."""
DRAWS = 24


@cache
def measured(name: str, networks: tuple[str, ...], data: str, weights: str, folder: str, count: int) -> float:
    """Accuracy of heads that are fitted to `count` images and tested on all others, mean over seeded draws."""
    features = features_of(name, networks, data, weights, folder)
    joined, labels = features.joined(networks), features.labels
    repeats = min(DRAWS, max(3, TESTED // (len(labels) - count)))
    found = []
    for fit, rest in StratifiedShuffleSplit(repeats, train_size=count, random_state=7).split(labels, labels):
        scale = StandardScaler().fit(joined[fit])
        head = logistic(scale.transform(joined[fit]), labels[fit], None, 0)
        best = head.predict_proba(scale.transform(joined[rest])).argmax(axis=1)
        found.append(float((head.classes_[best] == labels[rest]).mean()))
    return float(np.mean(found))


def forecast_records(name: str, options: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    """Forecasts from several parts of a set, with what heads on more images reach."""
    networks = SETS[name].combinations[0]
    for forecasts, part in itertools.product(SETS[name].forecasts, range(options.parts)):
        key = f"forecast {name} {'+'.join(networks)} {forecasts.start} {part}"
        if key in done:
            continue
        features = features_of(name, networks, options.data, options.weights, options.cache)
        joined, labels = features.joined(networks), features.labels
        draw = StratifiedShuffleSplit(1, train_size=forecasts.start, random_state=part)
        rows = next(draw.split(labels, labels))[0]
        names = [str(label) for label in range(features.classes)]
        curve = learning_curves(joined[rows], labels[rows], names, folds=FOLDS, seed=part, targets=forecasts.targets)[0]
        yield {
            "key": key, "kind": "forecast", "set": name, "networks": list(networks), "part": part,
            "start": forecasts.start,
            "forecasts": [
                {
                    "images": each.images, "value": each.value, "low": each.low, "high": each.high,
                    "true": measured(name, networks, options.data, options.weights, options.cache, each.images),
                }
                for each in curve.forecasts
            ],
        }  # fmt: skip


def recorded() -> list[dict[str, Any]]:
    """The records so far."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.is_file() else []


def run(options: argparse.Namespace) -> None:
    """Append what is not recorded yet."""
    done = {record["key"] for record in recorded()}
    for name in options.sets or SETS:
        sources = [label_records] if SETS[name].changed and options.only != "forecast" else []
        sources += [forecast_records] if SETS[name].forecasts and options.only != "labels" else []
        for records in sources:
            for record in records(name, options, done):
                with RECORDS.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(record["key"], flush=True)


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """The tables of docs/improve.md."""
    return f"{_label_table(records)}\n{_forecast_table(records)}"


def _label_table(records: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| set | features | changed | found among as many | among twice as many | accuracy with changed labels | after "
        "accepting | with true labels |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [record for record in records if record["kind"] == "labels"]
    for (name, networks, fraction), group in _grouped(rows, "set", "networks", "fraction"):
        means = [np.mean([each[key] for each in group]) for key in ("found", "found_twice", "before", "after", "true")]
        found, twice, *accuracies = means
        figures = " | ".join([f"{found:.2f}", f"{twice:.2f}", *(f"{each:.3f}" for each in accuracies)])
        lines.append(f"| {name} | {', '.join(networks)} | {fraction:.0%} | {figures} |")
    return "\n".join(lines) + "\n"


def _forecast_table(records: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        f"| set | from | to | measured | mean forecast | mean error in points | in its {LEVEL:.0%} interval |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [record for record in records if record["kind"] == "forecast"]
    for (name, start), group in _grouped(rows, "set", "start"):
        for number, first in enumerate(group[0]["forecasts"]):
            each = [record["forecasts"][number] for record in group]
            error = 100 * np.mean([abs(one["value"] - one["true"]) for one in each])
            inside = sum(one["low"] <= one["true"] <= one["high"] for one in each)
            value = np.mean([one["value"] for one in each])
            lines.append(
                f"| {name} | {start:,} | {first['images']:,} | {first['true']:.3f} | {value:.3f} | {error:.1f} | "
                f"{inside} of {len(each)} |"
            )
    return "\n".join(lines) + "\n"


def _grouped(
    rows: Sequence[Mapping[str, Any]], *keys: str
) -> Iterator[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row[key] for key in keys]), []).append(row)
    for text, group in groups.items():
        yield tuple(json.loads(text)), group


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(SETS)}; none: all")
    parser.add_argument("--data", default="data")
    parser.add_argument("--weights", default="weights")
    parser.add_argument("--cache", default="outputs/cache", help="where features are kept")
    parser.add_argument("--parts", type=int, default=12, help="seeded parts of a set to forecast from")
    parser.add_argument("--only", choices=("labels", "forecast"))
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments)
    else:
        print(table(recorded()))
