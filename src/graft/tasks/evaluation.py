"""Evaluate checkpoints on a split of a data set: the part of `graft evaluate` that imports torch."""

import dataclasses
import functools
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchmetrics import Metric

from graft.config.commands import EvaluateConfig
from graft.config.recorded import is_graft_view, is_library_part, require_trusted
from graft.config.registration import plain
from graft.config.schema import MetricsConfig, TrainConfig
from graft.config.task import SINGLE_LABEL
from graft.data.preprocessing import Preprocessing
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.data.unreadable import UnreadableImages
from graft.data.workers import explaining_worker_failures
from graft.errors import ConfigError, DataError
from graft.learning.ensemble import Ensemble
from graft.learning.inference import Inference
from graft.learning.losses import CROSS_ENTROPY, Loss
from graft.learning.metrics import Scored, SplitScores, build_metrics, scores_for
from graft.learning.restore import Restored, from_file
from graft.learning.views import View, build_views
from graft.review.evaluation_tables import (
    class_table,
    confusion_csv,
    member_table,
    most_confused,
    overall_table,
    table_of_labels,
)
from graft.review.predictions import writing
from graft.review.ranking import ranked
from graft.system.device import Device, inference_device
from graft.system.files import sha256, write_atomically
from graft.system.progress import progress_bar
from graft.system.terminal import log_table
from graft.tasks.build import loaders, objective_of
from graft.tasks.follow_task import metrics_of_task
from graft.tasks.locations import check_written
from graft.tasks.recorded_data import (
    notes_on_changed_data,
    notes_on_training_images,
    open_splits,
    run_config,
    summary_next_to,
)
from graft.tasks.run import versions

log = logging.getLogger("graft")

MOST_CLASSES = 25_000
"""Largest number of classes: their confusion matrix takes 5 GB."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A network that is evaluated, alone or in an ensemble.

    Attributes:
        checkpoint: its file.
        restored: the network.
        run: the configuration of its run, with the data that the command names.
        device: where it computes.
        inference: the network on its device, with its views.
    """

    checkpoint: Path
    restored: Restored
    run: TrainConfig
    device: Device
    inference: Inference

    @classmethod
    def of(cls, checkpoint: Path, config: EvaluateConfig, overrides: Collection[str]) -> "Member":
        """The network of a checkpoint.

        Raises:
            ConfigError: it has more than MOST_CLASSES, or names a data set of a package that is not trusted.
        """
        restored = from_file(checkpoint, config.trust, config.model).prepared(plain(config.preprocess))
        refuse_many_classes(restored, checkpoint)
        evaluated = run_config(config, restored.config, overrides, restored.source)
        restored.preprocessing.image_format.configure(evaluated.data)
        views = views_of(config, evaluated, restored.source)
        device, channels_last = inference_device(restored.config.get("trainer", {}), plain(config.trainer))
        inference = Inference(restored, device, channels_last=channels_last, views=views)
        return cls(checkpoint, restored, evaluated, device, inference)

    def described(self) -> dict[str, Any]:
        """Its keys of evaluation.json."""
        return {
            "checkpoint": {"file": str(self.checkpoint), "sha256": sha256(self.checkpoint)},
            "preprocessing": self.restored.preprocessing.to_dict(),
            "views": list(self.inference.views),
        }


def run(config: EvaluateConfig, checkpoints: Sequence[Path], overrides: Collection[str], folder: Path) -> float:
    """Evaluate a checkpoint, or an ensemble of several, and write the results to `folder`.

    The data, the loss and the metrics of an ensemble are those of the first checkpoint's run.

    Args:
        config: of the command.
        checkpoints: the files.
        overrides: keys set on the command line.
        folder: of the output.

    Returns:
        The accuracy in [0, 1]; with several labels per image the mean average precision.

    Raises:
        ConfigError: see `Member.of`; or the networks have different classes or tasks.
    """
    members = [Member.of(checkpoint, config, overrides) for checkpoint in checkpoints]
    first, *others = members
    ensemble = Ensemble([member.inference for member in members])
    evaluated = first.run
    check_written(evaluated.data.root, config.paths.outputs, {"hydra.run.dir": folder})
    task = ensemble.decisions.task
    splits = open_splits(evaluated).relabelled(ensemble.classes).of_task(task)
    summaries = [summary_of_same_data(member.restored, evaluated, member.checkpoint) for member in members]
    loss, metrics, notes = run_metrics(evaluated, splits, first.restored.source, config)
    notes = [
        *(note for member in members for note in member.restored.notes),
        *splits.notes,
        *notes_on_changed_data(splits, summaries[0]),
        *notes_on_limits(evaluated, config.split),
        *notes_on_ensemble(members, splits, config),
        *notes,
    ]
    for note in notes:
        log.info("note  %s", note)

    unreadable = UnreadableImages(folder / "unreadable.jsonl") if evaluated.data.on_error == "skip" else None
    data = [data_module(evaluated, splits, config.split, each, unreadable) for each in ensemble.preparations]
    empty = functools.partial(scores_for, task, ensemble.classes, ensemble.device, loss, metrics)
    scores = empty(thresholds=ensemble.thresholds)
    single = [empty(thresholds=each) for each in ensemble.members_thresholds] if others else []
    scored, *alone = measure(ensemble, data, config.split, scores, single, folder / "predictions.csv", config.topk)
    result: dict[str, Any] = {
        "task": task.name,
        **(first.described() if not alone else {}),
        "data": {"name": evaluated.data.name, "root": evaluated.data.root, "fingerprint": splits.fingerprint()},
        "split": config.split,
        **scores_by_name(config.split, ensemble.classes, scored),
    }
    of_runs = [
        recorded_metrics(member.restored, summary, config.split, member.checkpoint, each)
        for member, summary, each in zip(members, summaries, alone or [scored], strict=True)
    ]
    if alone:
        result["members"] = [
            member.described() | scores_by_name(config.split, ensemble.classes, each) | {"run": recorded}
            for member, each, recorded in zip(members, alone, of_runs, strict=True)
        ]
    result |= {
        "run": {} if alone else of_runs[0],
        "device": dataclasses.asdict(first.device) | {"threads": torch.get_num_threads()},
        "notes": [*notes, *(unreadable.notes() if unreadable else [])],
        "versions": versions(),
    }
    write_atomically(folder / "evaluation.json", (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    if scored.confusion is not None:
        write_atomically(folder / "confusion_matrix.csv", confusion_csv(ensemble.classes, scored.confusion).encode())
    log_result(result, scored, ensemble.classes, folder)
    return scored.overall[task.headline]


def notes_on_ensemble(members: Sequence[Member], splits: Splits, config: EvaluateConfig) -> list[str]:
    """Notes on another loss, other metrics or other training images of a network than of the first of an ensemble."""
    first, *others = members
    notes = [
        f"{key}: of {first.restored.source} for all networks; {other.restored.source} has another"
        for key in ("loss", "metrics")
        for other in others
        if plain(getattr(other.run, key)) != plain(getattr(first.run, key))
    ]
    for member in members if others else ():
        notes += notes_on_training_images(config, member.restored, first.run, splits)
    return notes


def refuse_many_classes(restored: Restored, checkpoint: Path) -> None:
    """Raise ConfigError for a network whose confusion matrix would not fit into memory."""
    if restored.task is SINGLE_LABEL and len(restored.classes) > MOST_CLASSES:
        raise ConfigError(
            f"{checkpoint}: has {len(restored.classes):,} classes; a confusion matrix has at most {MOST_CLASSES:,}.\n"
            "graft predict has no such limit."
        )


def summary_of_same_data(restored: Restored, evaluated: TrainConfig, checkpoint: Path) -> dict[str, Any]:
    """The run's summary if the evaluated data come from the same source; else empty."""
    same = evaluated.data._target_ == restored.config.get("data", {}).get("_target_")
    return summary_next_to(checkpoint) if same else {}


def views_of(config: EvaluateConfig, run: TrainConfig, source: str) -> Mapping[str, View]:
    """The views of `config` or, if it has none, of the run.

    Raises:
        ConfigError: the checkpoint `source` names a view of a package that is not trusted.
    """
    tta = run.tta if config.tta is None else config.tta
    chosen, recorded = config.views.parts(), run.views.parts()
    if tta and not chosen:
        if not recorded:
            raise ConfigError(f"{source}: records no views for tta=true.\nGive some: views=[identity,hflip].")
        for name, node in recorded.items():
            if not is_graft_view(node):
                require_trusted(f"views.{name}._target_", node["_target_"], source, config.trust)
    return build_views(tta, chosen or recorded)


def run_metrics(
    run: TrainConfig, splits: Splits, source: str, config: EvaluateConfig
) -> tuple[Loss | None, dict[str, Metric], list[str]]:
    """The run's own loss and metrics, the metrics of the command, and a note for each of the run's that cannot be
    computed here.

    Args:
        run: the run's configuration, as its checkpoint records it.
        splits: the data, for class weights that are counted.
        source: the checkpoint's file.
        config: of the command.

    Raises:
        ConfigError: a metric of the command cannot be computed.
    """
    loss: Loss | None = None
    metrics: dict[str, Metric] = {}
    notes = []
    try:
        if run.loss._target_ not in (None, CROSS_ENTROPY):
            _demand("loss", run.loss.arguments(), source, config.trust)
            loss = objective_of(run, splits).loss
    except ConfigError as error:
        notes.append(f"{config.split}/loss is the cross-entropy, not the run's loss. {error}")
    task = splits.task
    chosen, more = metrics_of_task(config.metrics, task)
    notes += more
    requested = chosen.parts()
    for name, node in run.metrics.parts().items():
        if name in requested:
            continue
        try:
            _demand(f"metrics.{name}", node, source, config.trust)
            metrics |= build_metrics(MetricsConfig.of({name: node}), len(splits.classes), task)
        except ConfigError as error:
            notes.append(f"no {config.split}/{name}. {error}")
    return loss, metrics | build_metrics(chosen, len(splits.classes), task), notes


def _demand(key: str, node: Mapping[str, Any], source: str, trust: Sequence[str]) -> None:
    if not is_library_part(node):
        require_trusted(f"{key}._target_", node["_target_"], source, trust)


def notes_on_limits(run: TrainConfig, split: str) -> list[str]:
    """A note if the run evaluated only a part of the split."""
    limit = getattr(run.trainer, f"limit_{split}_batches", None)
    return [] if limit is None else [f"the run had trainer.limit_{split}_batches={limit}; here all images are used"]


def data_module(
    run: TrainConfig,
    splits: Splits,
    split: str,
    preprocessing: Preprocessing,
    unreadable: UnreadableImages | None = None,
) -> TrainingData:
    """The run's loaders; those of the test give the images of `split` "train" or "all", without augmentation."""
    replaced = dataclasses.replace(splits, test=splits.part(split)) if split in ("train", "all") else splits
    return loaders(run, replaced, preprocessing, unreadable)


def measure(
    ensemble: Ensemble,
    data: Sequence[TrainingData],
    split: str,
    scores: SplitScores,
    single: Sequence[SplitScores],
    output: Path,
    topk: int,
) -> list[Scored]:
    """Predict every image of a split, write each prediction to `output`, and score them.

    Args:
        ensemble: of one network or several.
        data: the images in each preprocessing of the ensemble.
        split: "train", "val", "test" or "all".
        scores: of the ensemble, empty.
        single: the same of each of its networks; empty for one network.
        output: a CSV file.
        topk: number of classes of each image in it.

    Returns:
        The scores of the ensemble and, if it has several networks, of each of them.

    Raises:
        DataError: an image can be read with one preprocessing and not with another.
    """
    part = "val" if split == "val" else "test"
    images = data[0].splits.parts()[part]
    with (
        explaining_worker_failures(),
        progress_bar("images", len(images)) as bar,
        writing(output) as write,
        ensemble.many(),
    ):
        for batches in zip(*(each.eval_loader(part) for each in data), strict=True):
            bar.advance(len(batches[0].labels))
            batch, *others = (each.real() for each in batches)
            if any(not torch.equal(each.indices, batch.indices) for each in others):
                raise DataError("an image could not be read each time; check the disk and evaluate again.")
            if not len(batch.labels):
                continue
            labels = batch.labels.to(ensemble.device)
            each_logits = ensemble.member_logits([batch.images, *(each.images for each in others)])
            logits = ensemble.decisions.logits_of_mean(each_logits)
            scores.update(logits, labels)
            for own, own_logits in zip(single, each_logits if single else [], strict=True):
                own.update(own_logits, labels)
            names = [images.names[index] for index in batch.indices.tolist()]
            for each in ranked(ensemble, names, logits, topk, batch.labels):
                write(each)
    return [scores.compute(), *(own.compute() for own in single)]


def scores_by_name(split: str, classes: Sequence[str], scored: Scored) -> dict[str, Any]:
    """The scores of evaluation.json: "metrics" under their usual names, and "classes" with the scores of each."""
    by_class = dict(zip(classes, scored.classes, strict=True))
    metrics = {f"{split}/{name}": value for name, value in (scored.overall | scored.configured).items()}
    metrics |= {f"{split}/{name}": value for name, value in scored.by_class.items()}
    return {"metrics": metrics, "classes": {name: dataclasses.asdict(score) for name, score in by_class.items()}}


def recorded_metrics(
    restored: Restored, summary: Mapping[str, Any], split: str, checkpoint: Path, scored: Scored
) -> dict[str, float]:
    """Loss, accuracy and configured metrics that the run recorded for this split and checkpoint; empty without any."""
    if not summary:
        return {}
    tested = Path(summary.get("checkpoint") or "").name == checkpoint.name
    known = restored.metrics if split == "val" else summary["metrics"] if split == "test" and tested else {}
    names = (f"{split}/{name}" for name in ("loss", *restored.task.measured, *scored.configured))
    return {name: known[name] for name in dict.fromkeys(names) if name in known}


def log_result(result: Mapping[str, Any], scored: Scored, classes: Sequence[str], folder: Path) -> None:
    """Log the metrics as tables."""
    count, device = scored.images, result["device"]
    title = f"{count:,} {result['split']} images of {result['data']['name']}"
    members = result.get("members", [])
    if members:
        title += f" · ensemble of {len(members)} networks"
    elif len(result["views"]) > 1:
        title += f" · mean of {', '.join(result['views'])}"
    log.info("%s · %s · %s", title, device["accelerator"], device["precision"])
    if members:
        rows = {"ensemble": result["metrics"]} | {each["checkpoint"]["file"]: each["metrics"] for each in members}
        names = [f"{result['split']}/{name}" for name in scored.overall | scored.configured]
        log_table(member_table({name: [row[key] for key in names] for name, row in rows.items()}, names))
    else:
        log_table(overall_table(scored.overall | scored.configured))
    if scored.confusion is None:
        log_table(table_of_labels(result["classes"]))
    else:
        log_table(class_table(result["classes"]))
        if mistakes := most_confused(classes, scored.confusion):
            log.info("most often confused  %s", mistakes)
    recorded = result["run"]
    if recorded:
        pairs = [(result["metrics"][name], value) for name, value in recorded.items()]
        same = all(now == then or (math.isnan(now) and math.isnan(then)) for now, then in pairs)
        values = "  ".join(f"{name} {value:.6f}" for name, value in recorded.items())
        log.info("%s  %s", "equal to the run's metrics" if same else "the run had", values)
    log.info("written to  %s", folder)
