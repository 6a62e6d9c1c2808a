"""Advice before training: the part of `graft advise` that imports torch."""

import contextlib
import json
import logging
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from graft.advice import costs
from graft.advice.advice import Advice, Assessed, Confusion, confusions, ranked, table, within_error
from graft.advice.candidates import POOLED, Source, candidates_of
from graft.advice.page import as_page
from graft.advice.prediction import Probe, Way, predict, start_seconds
from graft.config.commands import AdviseConfig
from graft.config.composing import compose_config
from graft.config.registration import typed
from graft.config.schema import TrainConfig
from graft.config.task import MULTI_LABEL
from graft.data.feature_batches import Features
from graft.data.images import ImageSet
from graft.data.sampler import stratified_order
from graft.data.splits import Splits
from graft.data.transforms import eval_transform, noise
from graft.errors import ConfigError, DataError, UnreadableImage, listed
from graft.features.cut import Cut, NoCut
from graft.features.passes import FeaturePass
from graft.models.normalise import is_channels_last
from graft.probing.features import Matrix, Pretrained, pretrained, runner_of, stage_features
from graft.probing.heads import Fold, Probabilities, out_of_fold, split
from graft.probing.logme import logme
from graft.probing.training import StoredBackbone, trained_head
from graft.system.files import write_atomically
from graft.system.terminal import log_table
from graft.tasks.batch_size import AUTO, DEFAULT
from graft.tasks.checks import settle
from graft.tasks.data import groups_of
from graft.tasks.run import versions
from graft.tasks.trainer import silence_lightning

log = logging.getLogger("graft")

OWN_KEYS = ("models=", "weights=", "folder=", "advise.", "hydra.")

FEWEST, FEWEST_OF_CLASS = 40, 5
"""A network is probed on at least this number of images, and of images of each class."""

SAMPLE_OF_CLASS = 20
"""Images of each class, on the mean, that a sample has at least if the time is not short."""

VIEWS = 1
"""Number of augmented views of each image on which heads are trained, if runs augment."""

LOADED = 16
"""Number of images whose loading is measured."""

WIDEST = 1024
"""Features of more values are probed by logistic regression instead of LDA, whose time grows with their square."""

SCORED = 2000
"""Largest number of images for LogME."""

LISTED = 5
"""Number of pairs of confused classes in the log."""

SHARE, HEAD_SHARE = 0.7, 0.15
"""Fractions of a network's time for its features and for the training of its head; the rest is for other heads and
measured steps."""


@dataclass(frozen=True)
class Command:
    """The command line of `graft advise`.

    Attributes:
        overrides: all of them.
        directories: of --config-dir.
    """

    overrides: tuple[str, ...]
    directories: tuple[str, ...] = ()

    @property
    def passed_on(self) -> tuple[str, ...]:
        """The overrides that count for training."""
        return tuple(word for word in self.overrides if not word.lstrip("+~").startswith(OWN_KEYS))

    def training(self, words: Sequence[str]) -> str:
        """The command that trains with these overrides too."""
        directories = [word for folder in self.directories for word in ("--config-dir", folder)]
        return shlex.join(["graft", "train", *directories, *self.passed_on, *words])

    def config(self, words: Sequence[str]) -> TrainConfig:
        """The settled configuration of that command, with a number for data.batch_size=auto."""
        config = settle(typed(compose_config("train", [*self.passed_on, *words]), TrainConfig))
        if config.data.batch_size == AUTO:
            config.data.batch_size = DEFAULT
        return config


@dataclass(frozen=True)
class Examined:
    """The images that may be looked at: those of training and validation, in an order whose beginnings are stratified.

    Attributes:
        images: in that order.
        groups: of each; None if there are none.
        classes: names of the classes.
        source: `Splits.source`.
        counts: number of images of "train", "val" and "test" in a run.
    """

    images: ImageSet
    groups: list[str] | None
    classes: tuple[str, ...]
    source: str
    counts: dict[str, int]

    @classmethod
    def of(cls, config: AdviseConfig, splits: Splits) -> "Examined":
        """The images of a data set.

        Raises:
            DataError: several labels per image, or a class with too few images; names it.
        """
        if splits.task is MULTI_LABEL:
            raise DataError(
                f"data={config.data.name}: its images have several labels, and graft advise predicts the accuracy of "
                "one class per image.\nCompare networks by runs: graft train -m model=A,B strategy=feature_extract."
            )
        images = splits.train if splits.val is splits.test else splits.train.join(splits.val)
        few = [
            name for name, count in zip(splits.classes, images.counts(len(splits.classes)), strict=True) if count < 4
        ]
        if few:
            raise DataError(
                f"data={config.data.name}: too few training and validation images of {listed(few, 10)}; advice needs "
                "at least 4 of each class.\nAdd images, or leave such classes out."
            )
        images = images.select(stratified_order(images.labels, config.seed))
        counts = {name: len(part) for name, part in splits.parts().items()}
        return cls(images, groups_of(config, images), splits.classes, splits.source, counts)

    def sample(self, images: int | None) -> int:
        """The largest number of images to probe a network on, by `advise.images`."""
        if images is None:
            return len(self.images)
        return min(len(self.images), max(images, SAMPLE_OF_CLASS * len(self.classes)))

    @property
    def fewest(self) -> int:
        """The smallest number of images to probe a network on."""
        return min(len(self.images), max(FEWEST, FEWEST_OF_CLASS * len(self.classes)))


@dataclass(frozen=True)
class Probed:
    """A network with its measured accuracy and speed.

    Attributes:
        prepared: the network, and the configuration of its runs.
        network: built.
        labels: of the images that were read, class indices [N].
        rows: their indices among the examined images.
        out_of_fold: probabilities of a head on the features at the end of the backbone [N, C].
        probe: accuracies of heads.
        stages: name of each stage -> accuracy of a head on the features after it.
        logme: score of the features at the end.
        speed: on this machine.
        activations: see `costs.activations_of`.
        seconds: of all this.
        unreadable: names of images that cannot be read.
        head_trained: whether the network's own head was trained, which needs stored features.
    """

    prepared: "Prepared"
    network: Pretrained
    labels: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    out_of_fold: Probabilities
    probe: Probe
    stages: dict[str, float]
    logme: float
    speed: costs.Speed
    activations: list[int]
    seconds: float
    unreadable: tuple[str, ...]
    head_trained: bool


def run(
    config: AdviseConfig,
    splits: Splits,
    found: Sequence[Source],
    missing: Sequence[str],
    command: Command,
    folder: Path,
) -> Advice:
    """Probe the networks, rank their candidates, and write advise.json and advise.html.

    Args:
        config: of the command, settled.
        splits: the data; its test images are not looked at.
        found: the networks.
        missing: names of networks whose weights are not at hand.
        command: its overrides.
        folder: of the output.

    Raises:
        DataError: unsuitable data, or no network could be probed.
    """
    silence_lightning()
    started = time.monotonic()
    examined = Examined.of(config, splits)
    notes = [f"not compared, because their weights are not on this machine: {listed(missing, 8)}"] if missing else []
    probed: list[Probed] = []
    for prepared, seconds in in_turn(found, examined, command, notes, started + 60 * config.advise.minutes):
        try:
            probed.append(probe(prepared, config, examined, seconds))
        except (Skipped, NoCut) as reason:
            _note(notes, f"{prepared.source.name} is left out: {reason}")
    if not probed:
        raise DataError(f"no network could be probed:\n{chr(10).join(notes)}")
    candidates = ranked([each for network in probed for each in assessed(network, examined, command)])
    notes += notes_on(candidates, probed, examined)
    advice = Advice(
        data=str(config.data.name),
        candidates=candidates,
        networks=[described(each) for each in probed],
        confusions=shared_confusions(probed, examined),
        notes=notes,
        record={
            "images": len(examined.images), "grouped": examined.groups is not None, "counts": examined.counts,
            "classes": list(examined.classes), "folds": config.advise.folds, "seed": config.seed,
            "missing": list(missing), "minutes": round((time.monotonic() - started) / 60, 2),
            "threads": torch.get_num_threads(), "versions": versions(),
        },
    )  # fmt: skip
    write(advice, folder)
    return advice


class Skipped(Exception):
    """A network cannot be probed; the message is the reason."""


def _note(notes: list[str], note: str) -> None:
    notes.append(note)
    log.warning("note  %s", note)


@dataclass(frozen=True)
class Prepared:
    """A network whose weights have been read once, and its speed.

    Attributes:
        source: with the overrides that its weights need.
        config: of its runs.
        load, forward: seconds per image, as in `costs.Speed`.
    """

    source: Source
    config: TrainConfig
    load: float
    forward: float


def in_turn(
    found: Sequence[Source], examined: Examined, command: Command, notes: list[str], end: float
) -> Iterator[tuple[Prepared, float]]:
    """(a network, seconds for it) of each network, the fastest first: what it leaves is shared by the others.

    Args:
        found: the networks.
        examined: the images.
        command: of the advice.
        notes: those on networks that cannot be used are added.
        end: when all should be done, of `time.monotonic`.
    """
    prepared = []
    for source in found:
        try:
            prepared.append(prepare(source, examined, command))
        except (Skipped, ConfigError) as reason:
            _note(notes, f"{source.name} is left out: {reason}")
    prepared.sort(key=lambda each: each.load + each.forward)
    for number, each in enumerate(prepared):
        yield each, max(0.0, end - time.monotonic()) / (len(prepared) - number)


def prepare(source: Source, examined: Examined, command: Command) -> Prepared:
    """Build a network, and measure how fast it reads images and computes.

    A VGG whose weights lack its linear layers gets the classifier `pooled`, which has no others than the head.

    Raises:
        Skipped: its weights lack other layers.
    """
    config = command.config((*source.overrides, "strategy=feature_extract"))
    network = pretrained(config, len(examined.classes))
    if network.lacking:
        pooled = source.pooled(network.lacking) if config.model.classifier is None else None
        if pooled is None:
            raise Skipped(f"its weights lack {listed(network.lacking, 4)}")
        log.info("note  %s: its weights lack its linear layers, so %s", source.name, POOLED)
        return prepare(pooled, examined, command)
    runner = runner_of(config, network)
    images = random_images(runner, network, runner.batch_size)
    with runner.computing():
        forward = costs.forward_seconds(network.network, images)
    return Prepared(source, config, load_seconds(examined.images, network), forward)


def random_images(runner: FeaturePass, network: Pretrained, count: int) -> torch.Tensor:
    """Normalised noise, on the device of `runner`."""
    pixels = noise(network.preprocessing, count)
    if is_channels_last(network.network):
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    return runner.normalise(pixels.to(runner.device))


def load_seconds(images: ImageSet, network: Pretrained) -> float:
    """Seconds that reading and resizing an image takes in one process."""
    transform = eval_transform(network.preprocessing)
    rows = images.spread(LOADED).tolist()
    started = time.perf_counter()
    for row in rows:
        with contextlib.suppress(UnreadableImage):  # counted and named when all are read
            transform(images.load(row))
    return (time.perf_counter() - started) / len(rows)


def probe(prepared: Prepared, config: AdviseConfig, examined: Examined, seconds: float) -> Probed:
    """Probe a network within a time, on a part of the images if it is short.

    Raises:
        Skipped: the time is too short.
        NoCut: the network cannot be cut at the end of its backbone.
        DataError: an image cannot be read, and data.on_error=raise.
    """
    views = 0 if costs.cached_views(prepared.config) == 1 else VIEWS
    started, each = time.monotonic(), (1 + views) * (prepared.load + prepared.forward)
    count = min(examined.sample(config.advise.images), int(SHARE * seconds / each))
    if count < examined.fewest:
        needed = examined.fewest * each / SHARE / 60
        raise Skipped(
            f"{examined.fewest} images at {each:.2g} s take {needed:.2g} minutes, and {seconds / 60:.2g} are left for "
            "it (advise.minutes)"
        )
    network = pretrained(prepared.config, len(examined.classes))
    heads = Heads(examined, config)
    trained: list[npt.NDArray[np.bool_]] = []

    def train_head(cut: Cut, features: Features, views: list[Features], rows: npt.NDArray[np.int64]) -> None:
        labels, runner = heads.labels(rows), runner_of(prepared.config, network)
        backbone = StoredBackbone(prepared.config, network, runner, cut, features, views, labels)
        steps = round(steps_of(prepared.config, examined))
        found, predicted = trained_head(backbone, heads.folds(rows), steps, HEAD_SHARE * seconds)
        trained.append(found.argmax(1) == labels[predicted])

    chosen = examined.images.select(range(count))
    features = stage_features(prepared.config, network, chosen, examined.source, views=views, use=train_head)
    rows = np.flatnonzero(np.isfinite(features.end).all(1))
    labels = heads.labels(rows)
    end = heads.out_of_fold(features.end, rows)
    half = heads.out_of_fold(features.end, rows, folds=2)
    stages = {
        name: float((heads.out_of_fold(vectors, rows, closed=True).argmax(1) == labels).mean())
        for name, vectors in list(features.stages.items())[:-1]
    }
    correct = end.argmax(1) == labels
    stages[list(features.stages)[-1]] = float(correct.mean())
    own = trained[-1] if trained else correct
    measured = Probe.of(correct, half.argmax(1) == labels, own, config.advise.folds, max(stages.values()))
    score = logme(features.end[rows][:SCORED], labels[:SCORED])
    speed, activations = measured_speed(prepared, network, seconds)
    return Probed(
        prepared, network, labels, rows, end, measured, stages, score, speed, activations, time.monotonic() - started,
        features.unreadable, bool(trained),
    )  # fmt: skip


@dataclass(frozen=True)
class Heads:
    """Cross-validation over the examined images."""

    examined: Examined
    config: AdviseConfig

    def labels(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Class indices of the images at the indices `rows`."""
        return self.examined.images.labels[rows].astype(np.int64)

    def groups(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """A number for the group of each of these images; None without groups."""
        if self.examined.groups is None:
            return None
        numbers: npt.NDArray[np.int64] = np.unique([self.examined.groups[row] for row in rows], return_inverse=True)[1]
        return numbers

    def folds(self, rows: npt.NDArray[np.int64]) -> list[Fold]:
        """The folds of these images."""
        return split(self.labels(rows), self.groups(rows), self.config.advise.folds, self.config.seed)

    def out_of_fold(
        self, features: Matrix, rows: npt.NDArray[np.int64], *, folds: int | None = None, closed: bool = False
    ) -> Probabilities:
        """The probabilities of these images by heads that were fitted to the others.

        Args:
            features: of all examined images.
            rows: indices of the images.
            folds: None: as configured.
            closed: use a head in closed form where that is fast.
        """
        return out_of_fold(
            features[rows],
            self.labels(rows),
            self.groups(rows),
            folds or self.config.advise.folds,
            self.config.seed,
            "lda" if closed and features.shape[1] <= WIDEST else "logistic",
            len(self.examined.classes),
        )


def steps_of(config: TrainConfig, examined: Examined) -> float:
    """Number of optimizer steps of a run."""
    images = examined.counts["train"]
    return costs.epochs_of(config, images) * costs.steps_per_epoch(config, images)


def measured_speed(prepared: Prepared, network: Pretrained, seconds: float) -> tuple[costs.Speed, list[int]]:
    """(the network's speed, its activations); changes the statistics of its BatchNorm layers.

    Args:
        prepared: the network's forward pass.
        network: the network.
        seconds: for the network, of which the steps take a part.
    """
    runner = runner_of(prepared.config, network)
    candidates = candidates_of(prepared.source, [stage.name for stage in network.backbone])
    slowest = min(costs.SLOWEST, seconds * (1 - SHARE - HEAD_SHARE) / (3 * len(candidates)))
    count = min(max(2, int(slowest / (3 * prepared.forward))), int(prepared.config.data.batch_size))
    images = random_images(runner, network, count)
    with runner.computing(training=True):
        activations = costs.activations_of(network, images[:2])
        step = {
            frozen: costs.step_seconds(network, network.backbone[:frozen], images)
            for frozen in sorted({len(each.frozen) for each in candidates})
        }
    return costs.Speed(prepared.load, prepared.forward, step), activations


def assessed(probed: Probed, examined: Examined, command: Command) -> list[Assessed]:
    """The candidates of a network with their predictions and costs."""
    network, source, counts = probed.network, probed.prepared.source, examined.counts
    found = []
    configs = {"feature_extract": probed.prepared.config}  # those of a strategy differ in freeze.patterns alone
    for candidate in candidates_of(source, [stage.name for stage in network.backbone]):
        if candidate.strategy not in configs:
            configs[candidate.strategy] = command.config(candidate.overrides)
        config = configs[candidate.strategy]
        way = Way(candidate.strategy, candidate.unfrozen, counts["train"], counts["test"])
        prediction = predict(probed.probe, way)
        cost = costs.cost(candidate, network, config, probed.speed, counts, probed.activations, start_seconds())
        found.append(
            Assessed(
                candidate, prediction, cost, command.training(candidate.overrides), probed.probe.trained, probed.logme,
                len(probed.labels),
            )
        )  # fmt: skip
    return found


def notes_on(candidates: Sequence[Assessed], probed: Sequence[Probed], examined: Examined) -> list[str]:
    """How sure the advice is, and what it did not look at."""
    notes = []
    within = within_error(candidates)
    if within > 1:
        notes.append(
            f"the first {within} are within error of one another: choose by minutes, or train some of them to know"
        )
    parts = [
        f"{each.prepared.source.name} {len(each.labels):,}"
        for each in probed
        if len(each.labels) < len(examined.images)
    ]
    if parts:
        notes.append(
            f"of {len(examined.images):,} training and validation images only a sample was probed (advise.images, "
            f"advise.minutes, or because some cannot be read): {', '.join(parts)}"
        )
    if examined.groups is not None:
        notes.append(f"no group is divided by the cross-validation ({len(set(examined.groups)):,} groups)")
    untrained = [each.prepared.source.name for each in probed if not each.head_trained]
    if untrained:
        notes.append(
            "features could not be stored (cache=none, cache.max_gb, paths.cache), so converged linear heads stand for "
            f"those that a run trains, which short runs may not reach: {', '.join(untrained)}"
        )
    unreadable = dict.fromkeys(name for each in probed for name in each.unreadable)
    if unreadable:
        notes.append(f"{len(unreadable):,} images cannot be read (data.on_error=skip): {listed(unreadable, 20)}")
    return notes


def shared_confusions(probed: Sequence[Probed], examined: Examined) -> list[Confusion]:
    """The classes that every network confuses, on the images that all have seen."""
    rows = probed[0].rows
    for each in probed[1:]:
        rows = np.intersect1d(rows, each.rows)
    predicted = [each.out_of_fold[np.isin(each.rows, rows)].argmax(1) for each in probed]
    return confusions(examined.images.labels[rows].astype(np.int64), predicted, examined.classes)


def described(probed: Probed) -> dict[str, Any]:
    """The entry of a network in advise.json."""
    speed = probed.speed
    return {
        "model": probed.prepared.source.name,
        "weights": probed.prepared.source.weights,
        "images": len(probed.labels),
        "seconds": round(probed.seconds, 2),
        "stages": {name: round(accuracy, 4) for name, accuracy in probed.stages.items()},
        "logme": round(probed.logme, 4),
        "trained": round(probed.probe.trained, 4),
        "deviation": round(probed.probe.deviation, 4),
        "exponent": round(probed.probe.exponent, 3),
        "fitted": round(probed.probe.images),
        "seconds_per_image": {
            "load": float(f"{speed.load:.3g}"),
            "forward": float(f"{speed.forward:.3g}"),
            "step": {str(frozen): float(f"{seconds:.3g}") for frozen, seconds in speed.step.items()},
        },
    }


def write(advice: Advice, folder: Path) -> None:
    """Write advise.json and advise.html, and log the advice."""
    content = json.dumps(advice.to_json(), indent=2, ensure_ascii=False)
    write_atomically(folder / "advise.json", (content + "\n").encode(errors="backslashreplace"))
    write_atomically(folder / "advise.html", as_page(advice).encode("utf-8", "backslashreplace"))
    log_table(table(advice))
    for note in advice.notes:
        log.info("note  %s", note)
    for pair in advice.confusions[:LISTED]:
        counts = ", ".join(map(str, pair.counts))
        log.info("every network confuses  %s with %s: %s of %d images", pair.true, pair.predicted, counts, pair.images)
    log.info("advice        %s", advice.candidates[0].command)
    if advice.second is not None:
        log.info("cheap second  %s", advice.second.command)
    log.info("%s", folder / "advise.html")
