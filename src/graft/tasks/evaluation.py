"""Evaluate a checkpoint on a split of a data set: the part of `graft evaluate` that imports torch."""

import dataclasses
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
from graft.data.preprocessing import Preprocessing
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.data.unreadable import UnreadableImages
from graft.data.workers import explaining_worker_failures
from graft.errors import ConfigError
from graft.learning.inference import Inference, most_probable
from graft.learning.losses import CROSS_ENTROPY, Loss
from graft.learning.metrics import Scored, Scores, build_metrics
from graft.learning.restore import Restored, from_file
from graft.learning.views import View, build_views, with_margin
from graft.review.evaluation_tables import class_table, confusion_csv, most_confused, overall_table
from graft.review.predictions import rank, writing
from graft.system.device import inference_device
from graft.system.files import sha256, write_atomically
from graft.system.progress import progress_bar
from graft.system.terminal import log_table
from graft.tasks.build import loaders, objective_of
from graft.tasks.locations import check_written
from graft.tasks.recorded_data import notes_on_changed_data, open_splits, run_config, summary_next_to
from graft.tasks.run import versions

log = logging.getLogger("graft")

MOST_CLASSES = 25_000
"""Largest number of classes: their confusion matrix takes 5 GB."""


def run(config: EvaluateConfig, checkpoint: Path, overrides: Collection[str], folder: Path) -> float:
    """Evaluate a checkpoint and write the results to `folder`.

    Args:
        config: of the command.
        checkpoint: the file.
        overrides: keys set on the command line.
        folder: of the output.

    Returns:
        The accuracy in [0, 1].

    Raises:
        ConfigError: the checkpoint has more than MOST_CLASSES, or names a data set of a package that is not trusted.
    """
    restored = from_file(checkpoint, config.trust, config.model).prepared(plain(config.preprocess))
    refuse_many_classes(restored, checkpoint)
    evaluated = run_config(config, restored.config, overrides, restored.source)
    check_written(evaluated.data.root, config.paths.outputs, {"hydra.run.dir": folder})
    views = views_of(config, evaluated, restored.source)
    preprocessing = with_margin(restored.preprocessing, views)
    device, channels_last = inference_device(restored.config.get("trainer", {}), plain(config.trainer))
    splits = open_splits(evaluated).relabelled(restored.classes)
    summary = summary_of_same_data(restored, evaluated, checkpoint)
    loss, metrics, notes = run_metrics(evaluated, splits, restored.source, config)
    notes = [
        *restored.notes,
        *splits.notes,
        *notes_on_changed_data(splits, summary),
        *notes_on_limits(evaluated, config.split),
        *notes,
    ]
    for note in notes:
        log.info("note  %s", note)

    inference = Inference(restored, device, channels_last=channels_last, views=views)
    unreadable = UnreadableImages(folder / "unreadable.jsonl") if evaluated.data.on_error == "skip" else None
    data = data_module(evaluated, splits, config.split, preprocessing, unreadable)
    scores = Scores(restored.classes, inference.device, loss, metrics)
    scored = measure(inference, data, config.split, scores, folder / "predictions.csv", config.topk)
    result = {
        "checkpoint": {"file": str(checkpoint), "sha256": sha256(checkpoint)},
        "data": {"name": evaluated.data.name, "root": evaluated.data.root, "fingerprint": splits.fingerprint()},
        "split": config.split,
        "preprocessing": restored.preprocessing.to_dict(),
        "views": list(views),
        **scores_by_name(config.split, restored.classes, scored),
        "run": recorded_metrics(restored, summary, config.split, checkpoint, scored),
        "device": dataclasses.asdict(device) | {"threads": torch.get_num_threads()},
        "notes": [*notes, *(unreadable.notes() if unreadable else [])],
        "versions": versions(),
    }
    write_atomically(folder / "evaluation.json", (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomically(folder / "confusion_matrix.csv", confusion_csv(restored.classes, scored.confusion).encode())
    log_result(result, scored, restored.classes, folder)
    return scored.overall["acc"]


def refuse_many_classes(restored: Restored, checkpoint: Path) -> None:
    """Raise ConfigError for a network whose confusion matrix would not fit into memory."""
    if len(restored.classes) > MOST_CLASSES:
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
    requested = config.metrics.parts()
    for name, node in run.metrics.parts().items():
        if name in requested:
            continue
        try:
            _demand(f"metrics.{name}", node, source, config.trust)
            metrics |= build_metrics(MetricsConfig.of({name: node}), len(splits.classes))
        except ConfigError as error:
            notes.append(f"no {config.split}/{name}. {error}")
    return loss, metrics | build_metrics(config.metrics, len(splits.classes)), notes


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


def measure(inference: Inference, data: TrainingData, split: str, scores: Scores, output: Path, topk: int) -> Scored:
    """Predict every image of a split, write each prediction to `output`, and score them."""
    part = "val" if split == "val" else "test"
    images = data.splits.parts()[part]
    with (
        explaining_worker_failures(),
        progress_bar("images", len(images)) as bar,
        writing(output) as write,
        inference.many(),
    ):
        for batch in data.eval_loader(part):
            bar.advance(len(batch.labels))
            batch = batch.real()
            if not len(batch.labels):
                continue
            logits, labels = inference(batch.images), batch.labels.to(inference.device)
            scores.update(logits, labels)
            probabilities, best = most_probable(logits, topk)
            names = [images.names[index] for index in batch.indices.tolist()]
            for each in rank(names, probabilities.tolist(), best.tolist(), scores.classes, batch.labels.tolist()):
                write(each)
    return scores.compute()


def scores_by_name(split: str, classes: Sequence[str], scored: Scored) -> dict[str, Any]:
    """The scores of evaluation.json: "metrics" under their usual names, and "classes" with the scores of each."""
    by_class = dict(zip(classes, scored.classes, strict=True))
    metrics = {f"{split}/{name}": value for name, value in (scored.overall | scored.configured).items()}
    metrics |= {f"{split}/acc/{name}": score.recall for name, score in by_class.items() if score.recall is not None}
    return {"metrics": metrics, "classes": {name: dataclasses.asdict(score) for name, score in by_class.items()}}


def recorded_metrics(
    restored: Restored, summary: Mapping[str, Any], split: str, checkpoint: Path, scored: Scored
) -> dict[str, float]:
    """Loss, accuracy and configured metrics that the run recorded for this split and checkpoint; empty without any."""
    if not summary:
        return {}
    tested = Path(summary.get("checkpoint") or "").name == checkpoint.name
    known = restored.metrics if split == "val" else summary["metrics"] if split == "test" and tested else {}
    names = (f"{split}/{name}" for name in ("loss", "acc", *scored.configured))
    return {name: known[name] for name in names if name in known}


def log_result(result: Mapping[str, Any], scored: Scored, classes: Sequence[str], folder: Path) -> None:
    """Log the metrics as tables."""
    count, device = sum(score.images for score in scored.classes), result["device"]
    title = f"{count:,} {result['split']} images of {result['data']['name']}"
    if len(result["views"]) > 1:
        title += f" · mean of {', '.join(result['views'])}"
    log.info("%s · %s · %s", title, device["accelerator"], device["precision"])
    log_table(overall_table(scored.overall | scored.configured))
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
