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
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import graft
from benchmarks.defaults import link_masks
from graft.advice.candidates import Candidate, Source, candidates_of, sources
from graft.advice.prediction import GAINS, STEEPEST, Gain, Probe, Way, inputs, log_odds, predict
from graft.config.commands import AdviseConfig
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.probing.features import pretrained
from graft.system.files import write_atomically
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

TRAIN, TEST = 2_000, 1_000
"""Images of the large sets, in equal numbers of each class (CIFAR-10 is tested on twice as many)."""

RUN = ("data.num_workers=0", "data.val_fraction=0", "callbacks.checkpoint=last")
"""Overrides of every run and of the advice on it; the rest is Graft's defaults. The last epoch is tested: of few
validation images the best epoch is a matter of luck."""

LARGE = ("trainer.max_epochs=4",)
SMALL = ("trainer.max_epochs=8", "data.batch_size=16")

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


def flowers(data: Path, folder: Path) -> tuple[str, ...]:
    classes = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    link_folders({name: data / "flower_photos" / name for name in classes}, folder, TRAIN // 5, TEST // 5)
    return ("data=folder", f"data.root={folder}", *LARGE)


def cifar10(data: Path, folder: Path) -> tuple[str, ...]:
    unseen = sorted((data / "cifar10" / "test").iterdir())  # vgg_mini was trained on the others
    pictures = {each.name: each for each in unseen}
    link_folders(pictures, folder, TRAIN // 10, TEST // 5)
    return ("data=folder", f"data.root={folder}", *LARGE)


def masks(data: Path, folder: Path) -> tuple[str, ...]:
    """Three classes of the mask set; of five persons two train, because the original test set has 138 images only."""
    persons = sorted(each.name for each in (data / "mask").iterdir())
    link_masks(data, folder, {name for number, name in enumerate(persons) if number % 5 < 2})
    return ("data=folder", f"data.root={folder}", *SMALL)


SETS: Mapping[str, Callable[[Path, Path], tuple[str, ...]]] = {
    "faces": lambda data, folder: ("data=faces", *SMALL),
    "ants and bees": lambda data, folder: ("data=hymenoptera", f"paths.data={data}", *SMALL),
    "masks": masks,
    "digits": lambda data, folder: ("data=digits", "data.test_fraction=0.4", *LARGE),
    "flowers": flowers,
    "CIFAR-10": cifar10,
}


@dataclass(frozen=True)
class Options:
    """Arguments of the command line."""

    data: Path
    weights: Path
    sets: Sequence[str]
    seed: int
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
    keys = ("set", "model", "strategy", "cut", "seed")
    done = {tuple(row[key] for key in keys) for row in recorded("run")}
    started = time.monotonic()
    for source in networks(options):
        chosen = candidates(source)
        for name in options.sets:
            with tempfile.TemporaryDirectory() as folder:
                words = (*SETS[name](options.data, Path(folder) / "images"), f"seed={options.seed}")
                for candidate in chosen:
                    key = (name, source.name, candidate.strategy, candidate.cut, options.seed)
                    if key in done or time.monotonic() - started > 60 * options.minutes:
                        continue
                    append(dict(zip(keys, key, strict=True)) | measured(candidate, words, Path(folder)))


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
    for name in options.sets:
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            words = [
                *SETS[name](options.data, Path(folder) / "images"),
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
        for each in values["networks"]:
            each["weights"] = Path(each["weights"]).name  # records name no folder of a machine
        append({"kind": "advice", "set": name, "seconds": seconds, "classes": len(advice.record["classes"]), **values})


INPUTS: Mapping[str, tuple[str, ...]] = {
    "feature_extract": ("constant", "head"),
    "finetune": ("constant", "unfrozen", "head", "converged", "best_stage"),
}
"""Strategy -> inputs of its gain (see `graft.advice.prediction.inputs`); a hundred runs determine no more."""

PENALTY = 1.0
"""Of the ridge regression, on all factors but the constant; inputs are of size 1."""


@dataclass(frozen=True)
class Trained:
    """A candidate on a set: the record of its runs, with means over the seeds, and the probe of its network."""

    row: Mapping[str, Any]
    probe: Probe

    @property
    def tested(self) -> int:
        """Number of images that were tested."""
        return int(self.row["test"])

    @property
    def way(self) -> Way:
        """How its network was trained."""
        unfrozen = 1 - self.row["frozen"] / self.row["stages"]
        return Way(self.row["strategy"], unfrozen, self.row["train"], self.tested)

    def gain(self) -> tuple[float, float]:
        """(measured gain over the head on frozen features in log odds, its variance by the choice of the images)."""
        accuracy = (self.row["test/acc"] * self.tested + 0.5) / (self.tested + 1)
        head = self.probe.at(self.row["train"])[0]
        probed = (self.probe.deviation / (head * (1 - head))) ** 2
        return log_odds(accuracy) - log_odds(head), 1 / (self.tested * accuracy * (1 - accuracy)) + probed


def joined() -> list[Trained]:
    """The recorded candidates of which the network has a recorded probe."""
    probes = {
        (row["set"], each["model"]): Probe(
            trained=each["trained"],
            converged=list(each["stages"].values())[-1],
            best_stage=max(each["stages"].values()),
            deviation=each["deviation"],
            images=each["fitted"],
            exponent=min(each["exponent"], STEEPEST),
        )
        for row in recorded("advice")
        for each in row["networks"]
    }
    seeds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in recorded("run"):
        seeds.setdefault((row["set"], row["model"], row["strategy"], row["cut"]), []).append(row)
    means = ("test/acc", "seconds")
    return [
        Trained(rows[0] | {key: statistics.mean(row[key] for row in rows) for key in means}, probes[name, model])
        for (name, model, _, _), rows in seeds.items()
        if (name, model) in probes
    ]


def fitted(runs: Sequence[Trained], strategy: str, deviation: float = 0.3) -> Gain:
    """The gain of a strategy by a ridge regression on the runs, each weighed by how well its accuracy is known."""
    names = INPUTS[strategy]
    chosen = [run for run in runs if run.row["strategy"] == strategy]
    values = np.array([[inputs(run.probe, run.way)[name] for name in names] for run in chosen])
    gains, variances = np.array([run.gain() for run in chosen]).T
    weights = 1 / (deviation**2 + variances)
    penalty = np.diag([0.0 if name == "constant" else PENALTY / deviation**2 for name in names])
    factors = np.linalg.solve(values.T * weights @ values + penalty, values.T * weights @ gains)
    return Gain({name: round(float(factor), 4) for name, factor in zip(names, factors, strict=True)}, deviation)


def held_out(runs: Sequence[Trained], strategy: str) -> tuple[dict[str, Gain], float]:
    """(set -> the gain fitted to the runs on all other sets, standard deviation of its error there in log odds)."""
    sets = list(dict.fromkeys(run.row["set"] for run in runs))
    gains = {name: fitted([run for run in runs if run.row["set"] != name], strategy) for name in sets}
    errors, weights = [], []
    for run in runs:
        if run.row["strategy"] == strategy:
            measured, variance = run.gain()
            errors.append((measured - gains[run.row["set"]].of(inputs(run.probe, run.way))) ** 2 - variance)
            weights.append(1 / (0.3**2 + variance))
    return gains, max(0.1**2, float(np.average(errors, weights=weights))) ** 0.5


def fit(options: Options) -> None:
    """Write the gains."""
    runs = joined()
    strategies = {}
    for strategy in INPUTS:
        gain, (_, deviation) = fitted(runs, strategy), held_out(runs, strategy)
        strategies[strategy] = {
            "coefficients": dict(gain.coefficients), "deviation": round(deviation, 3),
            "runs": sum(run.row["strategy"] == strategy for run in runs),
        }  # fmt: skip
    quickest = [
        min(run.row["seconds"] for run in runs if run.row["set"] == name and run.row["strategy"] == "feature_extract")
        for name in {run.row["set"] for run in runs}
    ]
    content = {
        "made by": "python -m benchmarks.advice fit",
        "sets": sorted({run.row["set"] for run in runs}),
        "strategies": strategies,
        "start_seconds": round(statistics.median(quickest), 1),
    }
    write_atomically(GAINS, (json.dumps(content, indent=2) + "\n").encode())
    print(json.dumps(content, indent=2))


@dataclass(frozen=True)
class Comparison:
    """The advice on a set, by gains that were fitted to the other sets, against its runs.

    Attributes:
        name: of the set.
        runs: number of candidates that were trained.
        best, advised: test accuracies of the best of them, and of the one that is predicted to be the best.
        mean: of all.
        rank: Spearman's correlation of predicted and measured accuracies.
        error: mean absolute error of the prediction.
        covered: fraction of the measured accuracies within their 90 % interval.
        share: processor time of the advice as a fraction of that of the runs.
        seconds: of the advice.
    """

    name: str
    runs: int
    best: float
    advised: float
    mean: float
    rank: float
    error: float
    covered: float
    share: float
    seconds: float


def compared(name: str, runs: Sequence[Trained]) -> Comparison:
    """The comparison on a set."""
    gains = {}
    for strategy in INPUTS:
        by_set, deviation = held_out(runs, strategy)
        gains[strategy] = Gain(by_set[name].coefficients, deviation)
    own = [run for run in runs if run.row["set"] == name]
    predictions = [predict(run.probe, run.way, gains[run.row["strategy"]]) for run in own]
    measured = [run.row["test/acc"] for run in own]
    predicted = [each.accuracy for each in predictions]
    [advice] = [row for row in recorded("advice") if row["set"] == name]
    inside = [each.interval[0] <= found <= each.interval[1] for each, found in zip(predictions, measured, strict=True)]
    return Comparison(
        name=name,
        runs=len(own),
        best=max(measured),
        advised=measured[int(np.argmax(predicted))],
        mean=statistics.mean(measured),
        rank=float(spearmanr(predicted, measured).statistic),
        error=statistics.mean(abs(a - b) for a, b in zip(predicted, measured, strict=True)),
        covered=statistics.mean(inside),
        share=advice["seconds"] / sum(run.row["seconds"] for run in own),
        seconds=advice["seconds"],
    )


HEADER = ("set", "candidates", "best", "advised", "regret", "regret of a random one", "rank correlation",
          "mean error", "within the 90 % interval", "seconds", "share of the grid's")  # fmt: skip


def table(options: Options) -> None:
    """Print the comparison as Markdown."""
    runs = joined()
    rows = [compared(name, runs) for name in SETS if any(run.row["set"] == name for run in runs)]
    print("| " + " | ".join(HEADER) + " |")
    print("|---|" + "---:|" * (len(HEADER) - 1))
    for row in rows:
        cells = (
            row.name, row.runs, f"{row.best:.3f}", f"{row.advised:.3f}", f"{row.best - row.advised:.3f}",
            f"{row.best - row.mean:.3f}", f"{row.rank:.2f}", f"{row.error:.3f}", f"{row.covered:.0%}",
            f"{row.seconds:.0f}", f"{row.share:.0%}",
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")
    total = sum(row.runs for row in rows)
    means = [statistics.mean(values) for values in zip(*(
        (row.best - row.advised, row.best - row.mean, row.rank, row.error, row.covered, row.seconds, row.share)
        for row in rows
    ), strict=True)]  # fmt: skip
    texts = (
        f"{value:{kind}}" for value, kind in zip(means, (".3f", ".3f", ".2f", ".3f", ".0%", ".0f", ".0%"), strict=True)
    )
    print(f"| mean | {total} | | | " + " | ".join(texts) + " |")


COMMANDS: Mapping[str, Callable[[Options], None]] = {"train": train, "advise": advise, "fit": fit, "table": table}


def main() -> None:
    """The command line; see above."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.advice", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seed", type=int, default=0, help="of the runs")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after these minutes")
    arguments = parser.parse_args()
    options = Options(
        arguments.data.absolute(), arguments.weights.absolute(), arguments.sets, arguments.seed, arguments.minutes
    )
    COMMANDS[arguments.command](options)


if __name__ == "__main__":
    main()
