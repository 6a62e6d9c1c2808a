"""What a run's checkpoint says of its images, for a person at a notebook; nothing is written."""

from collections.abc import Sequence
from pathlib import Path

import torch

from graft.learning.callbacks.keep_predictions import columns_of, sorted_predictions
from graft.learning.checkpoints import read_checkpoint
from graft.learning.inference import Inference
from graft.learning.restore import from_checkpoint
from graft.review.look import Look
from graft.system.device import as_trained
from graft.tasks.evaluate import open_splits, run_config
from graft.tasks.score import data_module


def look(checkpoint: Path, part: str, trust: Sequence[str] = ()) -> Look:
    """Predict every image of "train", "val" or "test" of the run's own data, in the run's precision.

    Args:
        checkpoint: the file.
        part: which images.
        trust: packages that the checkpoint may name its data set's module of.

    Raises:
        ConfigError: no such part.
        DataError: the data set is not where the run found it.
    """
    from graft.config.commands import EvaluateConfig
    from graft.config.fields import one_of

    one_of("part", part, ("train", "val", "test"))
    content, restored = read_checkpoint(checkpoint), from_checkpoint(checkpoint)
    run = run_config(EvaluateConfig(trust=list(trust)), restored.config, (), restored.source)
    splits = open_splits(run)
    device, channels_last = as_trained(restored.config.get("trainer", {}), {})
    inference = Inference(restored, device, channels_last=channels_last)
    data = data_module(run, splits, part, restored.preprocessing)
    place = "val" if part == "val" else "test"  # where `data_module` puts it
    with inference.many():
        rows = [columns_of(inference(batch.images), batch, 0) for batch in data.eval_loader(place)]
    columns = {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}
    none = {"features": torch.zeros(0, 0), "feature_indices": torch.zeros(0)}
    predictions = sorted_predictions(columns | none, step=content["global_step"], epoch=content["epoch"])
    return Look(
        predictions, part, restored.classes, splits.parts()[part].names, lambda index: data.picture(place, index)
    )
