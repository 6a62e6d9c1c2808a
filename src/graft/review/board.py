"""The tags that TensorBoard shows, and a function to write each kind of content.

`writer` is a `torch.utils.tensorboard.SummaryWriter`, always the one of the run, so that all content of a run has one
name.
"""

import html
import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graft.config.task import SINGLE_LABEL, Task
from graft.learning.loggers import tag, whole_run_tag
from graft.learning.predictions import AnyPredictions, Array
from graft.review.grids import encoded
from graft.system.compat import add_summary

# TensorBoard sorts groups of cards by name: these come after `train` and `val`.
TRAIN_BATCH = "visuals/train_batch"
PREDICTIONS = "visuals/val_predictions"
WORST = "visuals/worst"
GRAD_CAM = "visuals/gradcam"
TEST_PREDICTIONS = "visuals/test_predictions"
GRIDS = (TRAIN_BATCH, PREDICTIONS, WORST, GRAD_CAM, TEST_PREDICTIONS)
FIGURE = "visuals/{}"
"""The tag of a figure in `review.figures`."""

CURVES = "precision_recall/{}"
PROJECTOR, EMBEDDING = "projector", "validation"
CONFIG, LAYERS, NOTES = "config", "layers", "notes"


def finals(task: Task) -> tuple[str, ...]:
    """The metrics that HPARAMS compares; under tags of their own, because val/acc continues after the best epoch."""
    return (f"val/{task.headline}", f"test/{task.headline}", "val/loss", "test/loss")


COLUMNS = ("strategy", "model", "optimizer.lr", "data", "seed")
"""Keys that HPARAMS shows, as far as those that a sweep varies leave room: TensorBoard selects five."""


def curves_layout(task: Task) -> dict[str, Any]:
    """Charts of the Custom Scalars tab: training against validation."""
    figures = {"accuracy": "acc"} if task is SINGLE_LABEL else {"F1 of all decisions": "f1_micro"}
    return {
        "Learning curves": {
            "loss": ["Multiline", ["train/loss$", "val/loss$"]],
            **{title: ["Multiline", [f"train/{name}$", f"val/{name}$"]] for title, name in figures.items()},
            "learning rate": ["Multiline", [f"{tag('lr/')}.*"]],
        }
    }


DIMENSIONS = 64
"""Number of principal components in the embedding: as many as the projector's own PCA and t-SNE use."""

THUMBNAIL = 32


def put_picture(writer: Any, tag: str, image: Image.Image, step: int, *, photograph: bool) -> None:
    """Write an image, as JPEG or PNG (`add_image` would always write a PNG)."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    content = Summary.Image(
        height=image.height,
        width=image.width,
        colorspace=3,
        encoded_image_string=encoded(image, photograph=photograph),
    )
    add_summary(writer, Summary(value=[Summary.Value(tag=tag, image=content)]), step)


def put_text(writer: Any, tag: str, markdown: str) -> None:
    """Write a text at step 0; see `table` and `verbatim`."""
    writer.add_text(tag, markdown, 0)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose cells are shown literally, with any characters."""
    lines = [header, ["---"] * len(header), *([literal(str(cell)) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def literal(text: str) -> str:
    """`text` escaped so that Markdown and HTML show it literally, on one line."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|])", r"\\\1", html.escape(" ".join(text.split())))


def verbatim(text: str) -> str:
    """`text` as an indented code block, which no character in it can end."""
    return "\n".join("    " + line for line in text.splitlines())


def open_session(writer: Any, choices: Mapping[str, Any], first: Collection[str], task: Task = SINGLE_LABEL) -> None:
    """Write the run's row in HPARAMS.

    Args:
        choices: value of each key; None is left blank.
        first: keys that the sweep of this run varies, which are shown.
        task: of the run.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    values = {key: plain(value) for key, value in choices.items()}
    shown = list(dict.fromkeys([*first, *COLUMNS]))[: max(len(first), len(COLUMNS))]
    kinds = {bool: api_pb2.DATA_TYPE_BOOL, int: api_pb2.DATA_TYPE_FLOAT64, float: api_pb2.DATA_TYPE_FLOAT64}
    columns = [
        api_pb2.HParamInfo(name=key, type=kinds.get(type(value), api_pb2.DATA_TYPE_STRING), differs=key in shown)
        for key, value in values.items()
    ]
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=whole_run_tag(name)), display_name=name) for name in finals(task)
    ]
    start = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    fields = {bool: "bool_value", int: "number_value", float: "number_value", str: "string_value"}
    for key, value in values.items():
        if value is not None:
            setattr(start.hparams[key], fields[type(value)], value)
    experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics, time_created_secs=time.time())
    _put_session(writer, metadata.EXPERIMENT_TAG, {"experiment": experiment})
    _put_session(writer, metadata.SESSION_START_INFO_TAG, {"session_start_info": start})


def put_curves_layout(writer: Any, task: Task = SINGLE_LABEL) -> None:
    """Write the charts of the Custom Scalars tab."""
    writer.add_custom_scalars(curves_layout(task))


def close_session(
    writer: Any,
    figures: Mapping[str, float],
    step: int,
    *,
    success: bool,
    logged: Collection[str] = (),
    task: Task = SINGLE_LABEL,
) -> None:
    """Write the final metrics and the status of the run's row in HPARAMS.

    Args:
        writer: of the run.
        figures: the metrics.
        step: number of optimizer steps.
        success: whether the run has finished.
        logged: metrics whose final value the logger has written.
        task: of the run.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    for name in finals(task):
        if name in figures and name not in logged:
            writer.add_scalar(whole_run_tag(name), figures[name], step)
    status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    _put_session(writer, metadata.SESSION_END_INFO_TAG, {"session_end_info": end})
    writer.flush()


def _put_session(writer: Any, tag: str, content: Mapping[str, Any]) -> None:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString())
    value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
    add_summary(writer, Summary(value=[value]), 0)


def plain(value: Any) -> Any:
    """`value` as a number, bool, text or None."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def put_curves(writer: Any, predictions: AnyPredictions, classes: Sequence[str], most: int) -> None:
    """Write a precision-recall curve for each of the first `most` classes that images have."""
    for number in range(min(most, predictions.scores.shape[1])):
        labels, scores = predictions.curve(number)
        if labels.any():
            writer.add_pr_curve(CURVES.format(classes[number]), labels, scores, predictions.step)


def put_embedding(writer: Any, predictions: AnyPredictions, thumbnails: Array, classes: Sequence[str]) -> None:
    """Write the head's input of the validation images, with their thumbnails, for the projector.

    At most 64 numbers of text and 3 KiB of picture for each image.

    Args:
        thumbnails: uint8 [M, T, T, 3] of the M images in `predictions.feature_indices`.
    """
    import torch

    rows = np.searchsorted(predictions.indices, predictions.feature_indices)
    metadata = []
    for row in rows.tolist():
        predicted, true = (" ".join(text.split()) for text in predictions.texts(row, classes))
        metadata.append([true, predicted, "correct" if predictions.correct[row] else "wrong"])
    _forget_embedding(Path(writer.log_dir) / PROJECTOR / EMBEDDING)
    writer.add_embedding(
        np.round(principal_components(predictions.features, DIMENSIONS), 4),
        metadata=metadata,
        metadata_header=["true", "predicted", "correct"],
        label_img=torch.from_numpy(thumbnails).permute(0, 3, 1, 2).float() / 255,
        global_step=PROJECTOR,  # only used as the name of the folder
        tag=EMBEDDING,
    )


def _forget_embedding(folder: Path) -> None:
    """Remove the files that `add_embedding` wrote before a run was resumed; it warns about existing ones."""
    with suppress(OSError):
        for name in ("metadata.tsv", "sprite.png", "tensors.tsv"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()  # fails if anything else is in it


def principal_components(features: Array, count: int) -> Array:
    """The first `count` principal components of [M, D] rows, [M, min(count, M, D)]."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    count = min(count, *features.shape)
    if features.shape[1] < features.shape[0]:
        _, axes = np.linalg.eigh(centred.T @ centred)
        return centred @ axes[:, ::-1][:, :count]
    squares, axes = np.linalg.eigh(centred @ centred.T)  # as good, and M is the smaller side
    return (axes * np.sqrt(np.maximum(squares, 0)))[:, ::-1][:, :count]
