"""Predictions of a run's checkpoint for its own images, for a notebook; nothing is written."""

from collections.abc import Sequence
from pathlib import Path

import torch

from graft.learning.callbacks.keep_predictions import columns_of, label_columns_of, sorted_predictions
from graft.learning.checkpoints import read_checkpoint
from graft.learning.inference import Inference
from graft.learning.restore import from_checkpoint
from graft.review.evaluated_images import EvaluatedImages
from graft.system.device import inference_device
from graft.tasks.evaluation import data_module
from graft.tasks.recorded_data import open_splits, run_config


def review(checkpoint: Path, part: str, trust: Sequence[str] = ()) -> EvaluatedImages:
    """Predict every image of "train", "val" or "test" of the run's own data, in the run's precision.

    Args:
        checkpoint: the file.
        part: of the data set.
        trust: packages that may be imported where the checkpoint names them.

    Raises:
        ConfigError: no such part.
        DataError: the data set is no longer where the run found it.
    """
    from graft.config.commands import EvaluateConfig
    from graft.config.fields import one_of

    one_of("part", part, ("train", "val", "test"))
    content, restored = read_checkpoint(checkpoint), from_checkpoint(checkpoint, trust)
    run = run_config(EvaluateConfig(trust=list(trust)), restored.config, (), restored.source)
    restored.preprocessing.image_format.configure(run.data)
    splits = open_splits(run)
    device, channels_last = inference_device(restored.config.get("trainer", {}), {})
    inference = Inference(restored, device, channels_last=channels_last)
    data = data_module(run, splits, part, restored.preprocessing)
    loader = "val" if part == "val" else "test"  # the part of `data_module` that holds the images
    with inference.many():
        rows = [
            columns_of(inference(batch.images), batch, 0)
            if restored.thresholds is None
            else label_columns_of(inference(batch.images), batch, len(batch.labels))
            for batch in data.eval_loader(loader)
        ]
    columns = {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}
    no_features = {"features": torch.zeros(0, 0), "feature_indices": torch.zeros(0)}
    predictions = sorted_predictions(
        columns | no_features, step=content["global_step"], epoch=content["epoch"], thresholds=restored.thresholds
    )
    return EvaluatedImages(
        predictions, part, restored.classes, splits.parts()[part].names, lambda index: data.picture(loader, index)
    )
