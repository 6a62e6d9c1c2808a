"""Proposals to improve a data set: the part of `graft improve` that imports torch."""

import json
import logging
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from graft.advice.candidates import Source
from graft.config.commands import ImproveConfig
from graft.config.composing import compose_config
from graft.config.registration import typed
from graft.config.schema import DataConfig, ModelConfig, TrainConfig
from graft.config.task import MULTI_LABEL
from graft.data.corrections import Corrections, read_corrections
from graft.data.images import ImageSet
from graft.data.splits import Splits
from graft.data.stream import find_images
from graft.errors import ConfigError, DataError, WeightsError, listed
from graft.improvement.label_errors import LabelErrors, find_label_errors, judged, spread_out
from graft.improvement.learning_curve import SHARES, LearningCurve, learning_curves
from graft.improvement.neighbours import directions, find_neighbours, voters
from graft.improvement.outliers import LIMIT, outlier_scores
from graft.improvement.overlaps import Overlap, overlaps
from graft.improvement.page import Report, as_page
from graft.improvement.pictures import CHECKS
from graft.improvement.proposals import DUPLICATE, KINDS, LABEL, OUTLIER, Proposal, as_csv, ranked
from graft.improvement.selection import Choice, as_choices, select, uncertainties
from graft.inspection.copies import copies_among, described
from graft.inspection.examine import ImageFacts
from graft.learning.checkpoints import NotACheckpoint, read_checkpoint
from graft.learning.restore import Restored, from_file
from graft.models import build_network
from graft.models.published import Published
from graft.models.recipe import Recipe
from graft.models.registry import TARGETS
from graft.models.weights import WeightsReport, load_weights
from graft.models.weights.finding import existing_file, find_published
from graft.probing.features import Matrix, Pretrained, pretrained, stage_features
from graft.probing.heads import logistic
from graft.system.files import write_atomically
from graft.system.progress import progress_bar
from graft.system.terminal import log_table
from graft.system.values import Check, literal, optional, read_values
from graft.tasks.data import copies_file, groups_of, missing_data, open_data
from graft.tasks.improve import RESULT, Command
from graft.tasks.locations import check_locations
from graft.tasks.recorded_data import open_splits, run_config
from graft.tasks.run import versions
from graft.tasks.train import data_line, duration
from graft.tasks.trainer import silence_lightning
from graft.transfer.stages import stages_of

log = logging.getLogger("graft")

DEFAULT_NETWORK = "squeezenet1_1"
"""The network for the features of a data set without a run: 5 MB of weights, and 20 ms per image on a core."""

START: dict[str, Check] = {"weights": optional(literal())}
"""What is read of the recorded group `model`."""

LEAST_OF_CLASS = 2
"""Least number of images of a class whose labels can be judged."""

SHOWN = 3
"""Number of images of each kind that the log names."""


@dataclass(frozen=True)
class Examined:
    """The images that are looked at.

    Attributes:
        images: those of training and validation, and the test images if requested.
        classes: names of the classes.
        split: of each image.
        groups: of each image; None if there are none.
        features: at the ends of the backbones, [N, D].
        lower: after the stages before the last ones, [N, E]; None without such stages.
        facts: the description of each.
        source: `Splits.source`.
        original: name of a relabelled image -> its class in the data set.
        earlier: the corrections that are applied already; None without any.
    """

    images: ImageSet
    classes: tuple[str, ...]
    split: npt.NDArray[np.str_]
    groups: list[str] | None
    features: Matrix
    lower: Matrix | None
    facts: list[ImageFacts]
    source: str
    original: dict[str, str]
    earlier: Corrections | None

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class index of each image, [N]."""
        return self.images.labels.astype(np.int64)


def run(command: Command, folder: Path) -> dict[str, Any]:
    """Look for proposals, and write proposals.csv, improve.json and improve.html to `folder`.

    Args:
        command: checked.
        folder: of the output.

    Returns:
        The content of improve.json.

    Raises:
        ConfigError: several labels per image.
        DataError: too few images, or some cannot be read.
    """
    silence_lightning()
    started = time.perf_counter()
    options = command.config.improve
    train_config, restored = configuration_of(command)
    check_locations(train_config, {"folder": folder})
    splits = opened(train_config, restored)
    log.info("data  %s", data_line(splits))
    networks, notes = networks_of(command, train_config, restored, len(splits.classes))
    if splits.val is splits.test:
        notes = [*notes, "the validation images are the test images, too: correcting them changes the measure"]
    for note in (*splits.notes, *notes):
        log.info("note  %s", note)
    examined = examine_images(train_config, splits, networks, test=options.test)
    kinds = tuple(options.kinds or KINDS)
    unit = directions(examined.features)
    neighbours = find_neighbours(unit, examined.groups, voters(len(unit), len(examined.classes)))
    probabilities = judged(
        examined.features, examined.labels, neighbours, len(examined.classes), examined.groups, options.folds,
        train_config.seed, examined.lower,
    )  # fmt: skip
    errors = find_label_errors(probabilities, examined.labels)
    proposals = all_proposals(examined, errors, kinds)
    curves = forecast(examined, train_config.seed, options.folds) if options.curve else []
    pairs = overlaps(probabilities, examined.labels, errors.joint, examined.classes)
    choices = choose_next(command.config, train_config, networks, examined) if command.config.unlabelled else []
    result = {
        "data": {"name": train_config.data.name, "root": train_config.data.root, "fingerprint": splits.fingerprint()},
        "images": dict(Counter(examined.split.tolist())),
        "classes": list(examined.classes),
        "networks": [network_of(each) for each in networks],
        "accuracy": round(float((probabilities.argmax(axis=1) == examined.labels).mean()), 4),
        "wrong_labels": round(errors.estimated, 1),
        "proposals": {kind: sum(each.kind == kind for each in proposals) for kind in kinds},
        "overlaps": [pair.plain() for pair in pairs],
        "learning_curve": [curve.plain() for curve in curves],
        "label_next": [choice.plain() for choice in choices],
        "corrections": None if splits.corrections is None else splits.corrections.plain(),
        "notes": [*splits.notes, *notes],
        "folds": options.folds,
        "seed": train_config.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
    }
    report = Report(
        title=f"data={train_config.data.name}", proposals=proposals[: options.page], total=len(proposals),
        images=examined.images, labels=examined.labels, classes=examined.classes, unit=unit, neighbours=neighbours,
        curves=curves, overlaps=pairs, choices=choices, original=examined.original, earlier=examined.earlier,
        wrong_labels=errors.estimated, fingerprint=result["data"]["fingerprint"],  # type: ignore[index]
    )  # fmt: skip
    write_atomically(folder / "proposals.csv", as_csv(proposals).encode("utf-8", "surrogateescape"))
    if choices:
        write_atomically(folder / "label_next.csv", as_choices(choices).encode("utf-8", "surrogateescape"))
    with progress_bar("page", len(report.proposals)) as bar:
        write_atomically(folder / "improve.html", as_page(report, bar.advance).encode("utf-8", "backslashreplace"))
    write_atomically(
        folder / RESULT, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
    )
    log_result(result, proposals, curves, pairs, command, folder)
    return result


# -- data and networks ---------------------------------------------------------------------------------------


def configuration_of(command: Command) -> tuple[TrainConfig, Restored | None]:
    """The configuration of the data, as training would have it, and the network of the run, if there is one."""
    config = command.config
    if command.checkpoint is None:
        run, restored = TrainConfig(), None
        run.data = DataConfig()
        vars(run.data).update({key: value for key, value in vars(config.data).items() if value is not None})
        run.data.name = run.data.name or None
    else:
        restored = from_file(command.checkpoint, config.trust)
        run = run_config(config.evaluation(), restored.config, command.keys, restored.source)
    run.seed = config.seed if config.seed is not None else run.seed if restored is not None else 0
    for key in ("accelerator", "precision", "channels_last"):
        if (value := getattr(config.trainer, key)) is not None:
            setattr(run.trainer, key, value)
    run.trainer.devices = 1
    run.cache, run.paths = config.cache, config.paths
    return run, restored


def opened(config: TrainConfig, restored: Restored | None) -> Splits:
    """The data set, with labels in the order of its own classes.

    Raises:
        DataError, NotAvailable: it is neither on this machine nor downloadable.
        ConfigError: its images have several labels.
    """
    if restored is not None:
        splits = open_splits(config)
    elif (missing := missing_data(config)) is not None:
        raise missing
    else:
        splits = open_data(config)
    if splits.task is MULTI_LABEL:
        raise ConfigError(
            f"data={config.data.name}: its images have several labels, and graft improve judges one class per image."
        )
    if not splits.train.image_format.is_rgb:
        raise ConfigError(
            f"data={config.data.name}: images of {splits.train.image_format}; graft improve judges images in 8-bit RGB."
            "\nLeave data.channels, data.bits and data.bands out, so that they are read as RGB."
        )
    return splits


def networks_of(
    command: Command, run: TrainConfig, restored: Restored | None, num_classes: int
) -> tuple[list[Pretrained], list[str]]:
    """(the networks whose features are used, notes on them).

    Features that were trained with the labels reveal fewer wrong ones: a network of a run is used with the weights from
    which it started, if they are on this machine.
    """
    model = command.config.model
    if command.sources:
        return [_pretrained(run, source, num_classes) for source in command.sources], []
    if restored is None or model._target_ is not None:
        run.model = model if model._target_ is not None else _default_model()
        return [pretrained(run, num_classes)], []
    if not restored.preprocessing.image_format.is_rgb:
        raise ConfigError(
            f"run={command.config.run}: its network takes images of {restored.preprocessing.image_format}, and graft "
            f"improve judges images in 8-bit RGB.\nGive a network for these: model={DEFAULT_NETWORK}."
        )
    start = None if command.checkpoint is None else start_weights(command.checkpoint)
    if start is not None and at_hand(restored.recipe, start):
        network = build_network(restored.recipe, len(restored.classes))
        report = load_weights(network, restored.recipe, start)
        return [Pretrained(restored.recipe, network, restored.preprocessing, report, stages_of(network))], [
            f"features are those of {report.source}, from which the run started, because they have not seen the labels"
        ]
    names = tuple(name for name, _ in restored.network.named_parameters())
    report = WeightsReport(restored.source, None, names, (), restored.preprocessing, restored.classes)
    why = "the run started from random weights" if start is None else f"model.weights={start} is not on this machine"
    note = (
        f"features are those of {restored.source}, which have seen the labels unless its backbone was frozen ({why}): "
        "fewer wrong labels are found than with a pretrained network, e.g. model=squeezenet1_1"
    )
    stages = stages_of(restored.network)
    return [Pretrained(restored.recipe, restored.network, restored.preprocessing, report, stages)], [note]


def start_weights(checkpoint: Path) -> str | None:
    """The weights from which a run started, `model.weights`; None if they were random or it records none.

    Raises:
        RecordError: a recorded value that is no plain text.
    """
    try:
        config = read_checkpoint(checkpoint)["graft"]["config"]
    except NotACheckpoint:
        return None
    model = config.get("model") if isinstance(config, dict) else None
    recorded = {"weights": model.get("weights")} if isinstance(model, dict) else {}
    found: str | None = read_values(recorded, START, str(checkpoint), "config.model").get("weights")
    return found


def _default_model() -> ModelConfig:
    return ModelConfig(_target_=next(iter(TARGETS)), name=DEFAULT_NETWORK)


def _pretrained(run: TrainConfig, source: Source, num_classes: int) -> Pretrained:
    """A network of `models`; a VGG whose weights lack its linear layers gets the classifier `pooled`.

    Raises:
        WeightsError: its weights lack other layers before the head.
    """
    config = replace(run, model=typed(compose_config("train", source.overrides), TrainConfig).model)
    network = pretrained(config, num_classes)
    lacking = network.lacking
    if not lacking:
        return network
    pooled = source.pooled(lacking)
    if pooled is None:
        raise WeightsError(f"weights.{source.name}={source.weights}: lacks {listed(lacking, 4)}.\nGive other weights.")
    return _pretrained(run, pooled, num_classes)


def at_hand(recipe: Recipe, weights: str) -> bool:
    """Whether weights can be loaded without a download."""
    try:
        published: Published | None = find_published(recipe, weights)
        if published is not None:
            return published.address.local_copy() is not None
        return not weights.startswith("hf://") and existing_file(recipe, weights).is_file()
    except WeightsError:
        return False


def network_of(network: Pretrained) -> dict[str, Any]:
    """The entry of a network in improve.json."""
    weights = network.weights
    return {"model": network.recipe.name, "weights": weights.source, "sha256": weights.sha256}


def features_of(
    config: TrainConfig, networks: Sequence[Pretrained], images: ImageSet, source: str
) -> tuple[Matrix, Matrix | None]:
    """The joined features of all networks: at the ends of the backbones [N, D], and after the stages before [N, E].

    Rows of unreadable images (data.on_error=skip) are NaN.
    """
    found = [stage_features(config, each, images, source, stages=each.backbone[-2:-1]).stages for each in networks]
    ends, lower = [], []
    for stages in found:
        *others, end = map(spread_out, stages.values())
        ends.append(end)
        lower += others
    return np.concatenate(ends, axis=1), np.concatenate(lower, axis=1) if lower else None


def examine_images(config: TrainConfig, splits: Splits, networks: Sequence[Pretrained], *, test: bool) -> Examined:
    """The images with their features and descriptions, without those that cannot be read.

    Raises:
        DataError: too few classes or images.
    """
    parts = {name: images for name, images in splits.distinct_parts().items() if test or name != "test"}
    images = splits.train
    for name, part in parts.items():
        images = images if name == "train" else images.join(part)
    split = np.repeat(list(parts), [len(part) for part in parts.values()])
    with progress_bar("examining images", len(images)) as bar:
        facts = described(images, copies_file(config), bar.advance)
    features, lower = features_of(config, networks, images, splits.source)
    readable = np.array([each is not None for each in facts]) & np.isfinite(features).all(axis=1)
    kept = np.flatnonzero(readable)
    images = images.select(kept)
    counts = [count for count in images.counts(len(splits.classes)) if count]
    if len(counts) < 2 or max(counts) < LEAST_OF_CLASS:
        raise DataError(
            f"data={config.data.name}: {len(images):,} images of {len(counts)} classes are too few to judge labels by: "
            "at least 2 classes are needed, and 2 images of one.\nAdd images."
        )
    few = [name for name, count in zip(splits.classes, images.counts(len(splits.classes)), strict=True) if count == 1]
    if few:
        log.info("note  the only image of %s cannot be judged by others of its class", listed(few, 10))
    corrections = config.data.corrections
    return Examined(
        images=images,
        classes=splits.classes,
        split=split[kept],
        groups=groups_of(config, images),
        features=features[kept],
        lower=None if lower is None else lower[kept],
        facts=[each for index in kept.tolist() if (each := facts[index]) is not None],
        source=splits.source,
        original=dict(splits.corrections.original) if splits.corrections else {},
        earlier=None if corrections is None else read_corrections(corrections),
    )


# -- proposals -----------------------------------------------------------------------------------------------


def all_proposals(examined: Examined, errors: LabelErrors, kinds: Sequence[str]) -> list[Proposal]:
    """The proposals of these kinds, the best first, without those that a person has rejected before."""
    labels, classes = examined.labels, examined.classes
    own = errors.probabilities[np.arange(len(labels)), labels]

    def proposal(index: int, kind: str, score: float, to: int | None = None, like: Sequence[int] = ()) -> Proposal:
        proposed = None if to is None else classes[to]
        given, split = classes[labels[index]], str(examined.split[index])
        return Proposal(
            index, examined.images.names[index], kind, given, proposed, round(float(score), 6), split, tuple(like)
        )

    found = [
        proposal(index, LABEL, errors.scores[index], int(errors.proposed[index])) for index in errors.suspects.tolist()
    ]
    for group in copies_among(examined.facts):
        present = Counter(labels[group].tolist())
        if len(present) > 1:
            for index in group:
                others = {label: count for label, count in present.items() if label != labels[index]}
                likely = max(others, key=lambda label: (others[label], errors.probabilities[index, label]))
                score = 0.5 + 0.5 * (1 - own[index])
                like = [other for other in group if labels[other] != labels[index]]
                found.append(proposal(index, DUPLICATE, score, likely, like))
    distances = outlier_scores(examined.features)
    found += [
        proposal(index, OUTLIER, 1 - 0.5 * LIMIT / distances[index])
        for index in np.flatnonzero(distances > LIMIT).tolist()
    ]
    for kind, check in CHECKS.items():
        scores = check.scores(examined.facts)
        found += [proposal(index, kind, scores[index]) for index in np.flatnonzero(scores > 0.5).tolist()]
    rejected = examined.earlier.kept if examined.earlier else frozenset()
    return ranked(each for each in found if each.kind in kinds and (each.path, each.kind) not in rejected)


def forecast(examined: Examined, seed: int, folds: int) -> list[LearningCurve]:
    """The learning curve of all images and of each class, with its forecast."""
    with progress_bar("learning curve", folds * len(SHARES)) as bar:
        return learning_curves(
            examined.features, examined.labels, examined.classes, examined.groups, folds, seed, done=bar.advance
        )


def choose_next(
    config: ImproveConfig, run: TrainConfig, networks: Sequence[Pretrained], examined: Examined
) -> list[Choice]:
    """Which images of `unlabelled` to label next."""
    found = list(find_images([str(Path(str(config.unlabelled)).expanduser())]))
    images = ImageSet([each.relative for each in found], np.zeros(len(found), np.int64), [each.path for each in found])
    run = replace(run, data=replace(run.data, on_error="skip"))
    features, _ = features_of(run, networks, images, f"unlabelled {config.unlabelled}")
    kept = np.flatnonzero(np.isfinite(features).all(axis=1))
    middle, spread = examined.features.mean(axis=0), np.maximum(examined.features.std(axis=0), 1e-6)
    labelled, new = ((each - middle) / spread for each in (examined.features, features[kept]))
    head = logistic(labelled, examined.labels, None, run.seed)
    probabilities = head.predict_proba(new)
    unit, known = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-12) for each in (new, labelled))
    chosen = select(unit, known, uncertainties(probabilities), config.improve.count)
    best = probabilities.argmax(axis=1)
    return [
        Choice(
            path=images.names[kept[index]],
            file=str(found[kept[index]].path),
            predicted=examined.classes[int(head.classes_[best[index]])],
            probability=float(probabilities[index, best[index]]),
            uncertainty=float(chosen.uncertainty[index]),
        )
        for index in chosen.indices
    ]


# -- the log -------------------------------------------------------------------------------------------------


def log_result(
    result: dict[str, Any],
    proposals: Sequence[Proposal],
    curves: Sequence[LearningCurve],
    pairs: Sequence[Overlap],
    command: Command,
    folder: Path,
) -> None:
    """Log the numbers, the first proposals of each kind, the forecast, and what to do next."""
    table = Table(title="proposals", title_justify="left")
    for name in ("kind", "number", "the first"):
        table.add_column(name, justify="right" if name == "number" else "left")
    for kind, number in result["proposals"].items():
        if number:
            names = [
                f"{each.path} → {each.proposed}" if each.proposed else each.path
                for each in proposals
                if each.kind == kind
            ]
            table.add_row(kind, f"{number:,}", listed(names, SHOWN, counted=False))
    log_table(table)
    log.info(
        "about %.0f of %s labels are wrong (estimated by confident learning)",
        result["wrong_labels"], f"{sum(result['images'].values()):,}",
    )  # fmt: skip
    for pair in pairs[:SHOWN]:
        log.info(
            "overlap  %s: %d images are predicted as the other class (%.1f%%)",
            " and ".join(pair.classes),
            pair.confused,
            100 * pair.share,
        )
    for curve in curves[:1]:
        ahead = ", ".join(
            f"{each.value:.3f} ({each.low:.3f} to {each.high:.3f}) with {each.images:,}" for each in curve.forecasts
        )
        log.info(
            "more images  accuracy of a head %.3f with %s; forecast: %s",
            curve.accuracy[-1],
            f"{curve.images[-1]:,}",
            ahead,
        )
    if result["label_next"]:
        log.info("label next  %s images: %s", len(result["label_next"]), folder / "label_next.csv")
    log.info("%s in all", duration(result["seconds"]))
    log.info("proposals  %s", folder / "proposals.csv")
    log.info("decide on them in a browser, and save corrections.csv: %s", (folder / "improve.html").absolute())
    log.info("  %s", training_command(command))


def training_command(command: Command) -> str:
    """The command that trains with the corrections that the page saves."""
    words = [word for word in command.overrides if word.startswith(("data", "model", "paths.data=", "seed="))]
    if command.checkpoint is not None:
        summary = command.checkpoint.absolute().parents[1] / "summary.json"
        try:
            recorded = json.loads(summary.read_bytes())["overrides"]
            words = [str(word) for word in recorded if not str(word).startswith(("hydra.run.dir=", "resume="))] + words
        except (OSError, ValueError, KeyError, TypeError):
            pass
    words = [word for word in words if not word.startswith(("data.corrections=", "models=", "weights="))]
    return shlex.join(["graft", "train", *dict.fromkeys(words), "data.corrections=corrections.csv"])
