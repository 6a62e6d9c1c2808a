"""Average checkpoints and write the result as the folder of a run: the part of `graft soup` that imports torch."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchmetrics import Metric

from graft.config.commands import SoupConfig
from graft.config.fields import one_of
from graft.config.metrics import direction, known_directions
from graft.config.registration import plain
from graft.config.task import Task
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.data.unreadable import UnreadableImages
from graft.data.workers import explaining_worker_failures
from graft.errors import ConfigError, listed
from graft.learning.averaging import differing_statistics, mean_of, measure_statistics
from graft.learning.checkpoints import BEST, read_checkpoint
from graft.learning.inference import Inference
from graft.learning.losses import Loss
from graft.learning.metrics import LabelScore, scores_for
from graft.learning.restore import PREFIX, Restored, from_checkpoint
from graft.system.device import inference_device
from graft.system.escaping import printable
from graft.system.files import sha256, write_atomically, writing_atomically
from graft.system.terminal import log_table
from graft.tasks.build import loaders
from graft.tasks.evaluation import refuse_many_classes, run_metrics
from graft.tasks.locations import check_written
from graft.tasks.recorded_data import notes_on_training_images, open_splits, run_config, summary_next_to
from graft.tasks.run import versions

log = logging.getLogger("graft")

RANDOM = "random"
"""Origin of weights, in a checkpoint, that were not loaded."""


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint that may become a part of the soup.

    Attributes:
        file: the checkpoint.
        weights: of the network, by the network's own names.
    """

    file: Path
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """The addition of a checkpoint to the soup.

    Attributes:
        file: the checkpoint.
        alone: value of the metric of its own weights, on the validation images.
        together: that of the average of the soup so far and it.
        kept: whether it stays in the soup.
    """

    file: Path
    alone: float
    together: float
    kept: bool


def run(config: SoupConfig, files: Sequence[Path], overrides: Collection[str], folder: Path) -> float:
    """Average the weights of `files` and write checkpoints/best.ckpt and summary.json to `folder`.

    Args:
        config: of the command.
        files: the checkpoints.
        overrides: keys set on the command line.
        folder: of the output.

    Returns:
        The value of the metric on the validation images.

    Raises:
        ConfigError: the networks, classes or preprocessings differ; or a metric that is not measured.
    """
    started = time.perf_counter()
    restored, ingredients = read_ingredients(files, config.trust)
    first = restored[0]
    refuse_many_classes(first, files[0])
    evaluated = run_config(config.evaluation(), first.config, overrides, first.source)
    first.preprocessing.image_format.configure(evaluated.data)
    check_written(evaluated.data.root, config.paths.outputs, {"hydra.run.dir": folder})
    splits = open_splits(evaluated).relabelled(first.classes).of_task(first.task)
    notes = notes_on_origin(restored)
    for each in restored[1:]:
        notes += notes_on_training_images(config.evaluation(), each, evaluated, splits)
    loss, metrics, notes_of_metrics = run_metrics(evaluated, splits, first.source, config.evaluation())
    notes += notes_of_metrics
    if splits.val is splits.test and config.test:
        notes.append("this data set has no test images of its own: those that test the soup have also chosen it")
    for note in notes:
        log.warning("note  %s", note)
    metric = metric_of(config, files[0], metrics, first.task)
    nodes = evaluated.metrics.parts() | config.metrics.parts()
    better = 1 if direction(metric, known_directions(nodes)) == "max" else -1

    device, channels_last = inference_device(first.config.get("trainer", {}), plain(config.trainer))
    inference = Inference(first, device, channels_last=channels_last)
    unreadable = UnreadableImages(folder / "unreadable.jsonl") if evaluated.data.on_error == "skip" else None
    data = loaders(evaluated, splits, first.preprocessing, unreadable)
    mean = MeanNetwork(inference, data, loss, metrics, config.statistics_images)
    with explaining_worker_failures(), inference.many():
        value_of: Callable[[Sequence[Ingredient]], float] = lambda parts: mean.figures(parts, "val")[metric]  # noqa: E731
        steps = greedy(ingredients, value_of, better) if config.method == "greedy" else uniform(ingredients, value_of)
        kept = [each for each in ingredients if any(step.kept and step.file == each.file for step in steps)]
        best = max(steps, key=lambda step: better * step.alone)
        figures = mean.figures(kept, "val")
        thresholds = mean.thresholds
        weights = {name: tensor.cpu().clone() for name, tensor in inference.network.state_dict().items()}
        tests: dict[str, dict[str, float]] = {}
        if config.test:
            figures |= (tests := {"soup": mean.figures(kept, "test")})["soup"]
            alone = [each for each in ingredients if each.file == best.file]
            if thresholds is not None:
                mean.figures(alone, "val")  # chooses its own thresholds
            tests["best alone"] = mean.figures(alone, "test")
    summary = summary_of(config, files[0], splits, figures) | {
        "soup": {
            "method": config.method,
            "metric": metric,
            "steps": [
                dataclasses.asdict(step) | {"file": str(step.file), "sha256": sha256(step.file)} for step in steps
            ],
            "test": tests,
            "statistics": differing_statistics(inference.network, [each.weights for each in kept]),
        },
        "device": dataclasses.asdict(device) | {"threads": torch.get_num_threads()},
        **({} if thresholds is None else {"thresholds": dict(zip(first.classes, thresholds, strict=True))}),
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 2),
    }
    write(folder, files[0], weights, figures, thresholds, summary)
    log_result(steps, metric, figures, tests, better, folder, f"test/{first.task.headline}")
    return figures[metric]


def read_ingredients(files: Sequence[Path], trust: Sequence[str]) -> tuple[list[Restored], list[Ingredient]]:
    """The networks of checkpoints, of which only the first is kept in memory, and their weights, which stay on disk.

    Raises:
        ConfigError: see `refuse_unlike`.
    """
    restored: list[Restored] = []
    ingredients = []
    for file in files:
        each = from_checkpoint(file, trust)
        restored.append(dataclasses.replace(each, network=restored[0].network) if restored else each)
        refuse_unlike([restored[0], each])
        saved = read_checkpoint(file)["state_dict"]
        ingredients.append(Ingredient(file, {name: saved[f"{PREFIX}{name}"] for name in each.network.state_dict()}))
    return restored, ingredients


def refuse_unlike(networks: Sequence[Restored]) -> None:
    """Refuse checkpoints whose weights have no common mean.

    Raises:
        ConfigError: other classes or another order of them, another network, or another preprocessing; names the files
            and what differs.
    """
    first, *others = networks
    for other in others:
        pair = f"runs: {first.source} and {other.source}"
        if other.classes != first.classes:
            same = set(other.classes) == set(first.classes)
            kind = "in another order" if same else "others"
            raise ConfigError(
                f"{pair} have different classes ({listed(first.classes, 5)}; {listed(other.classes, 5)}): the second's "
                f"are {kind}.\nAn ensemble can combine networks whose classes are in another order: graft evaluate "
                "'checkpoint=[A,B]'."
            )
        for what, ours, theirs in (
            ("task", {"task": first.task.name}, {"task": other.task.name}),
            ("network", first.recipe.to_dict(), other.recipe.to_dict()),
            ("preprocessing", first.preprocessing.to_dict(), other.preprocessing.to_dict()),
        ):
            differing = [f"{key} {ours.get(key)} and {theirs.get(key)}" for key in ours if ours[key] != theirs.get(key)]
            if differing:
                raise ConfigError(
                    f"{pair} differ in the {what}: {listed(differing, 5)}.\nOnly weights of the same network on the "
                    "same images can be averaged. An ensemble has no such limit: graft evaluate 'checkpoint=[A,B]'."
                )


def notes_on_origin(networks: Sequence[Restored]) -> list[str]:
    """A note if the networks did not begin with the same weights: their mean is then usually worse than each."""
    origins = [read_checkpoint(Path(each.source))["graft"].get("weights") or {} for each in networks]
    if all(origin.get("source") == RANDOM for origin in origins):
        return [
            "the runs began with random weights, and the mean of networks that share no beginning is usually useless, "
            "unless these are epochs of one run"
        ]
    if len({origin.get("sha256") for origin in origins}) > 1:
        return ["the runs began with different weights, and the mean of such networks is usually worse than each"]
    return []


def metric_of(config: SoupConfig, file: Path, configured: Mapping[str, Metric], task: Task) -> str:
    """The full name of the metric that the soup is chosen by.

    Raises:
        ConfigError: it is not measured.
    """
    recorded = read_checkpoint(file)["graft"]["config"].get("optimized_metric")
    usual = recorded if isinstance(recorded, str) and recorded[:4] == "val/" else f"val/{task.headline}"
    name = config.optimized_metric or usual
    one_of("optimized_metric", name, [f"val/{each}" for each in (*task.measured, *configured)])
    return name


class MeanNetwork:
    """Measures averages of checkpoints.

    Args:
        inference: the network, whose weights it replaces.
        data: the images.
        loss, metrics: of the first run.
        statistics_images: number of training images for BatchNorm's statistics.

    Attributes:
        thresholds: of the labels, chosen by the last validation; None with one class per image.
    """

    def __init__(
        self,
        inference: Inference,
        data: TrainingData,
        loss: Loss | None,
        metrics: Mapping[str, Metric],
        statistics_images: int,
    ) -> None:
        self.inference, self.data, self.loss, self.metrics = inference, data, loss, metrics
        self.statistics_images = statistics_images
        self.thresholds: tuple[float, ...] | None = None
        self._sample: Tensor | None = None

    def figures(self, parts: Sequence[Ingredient], split: str) -> dict[str, float]:
        """The metrics of the mean of `parts` on "val" or "test", by their full names; the network keeps its weights.

        Labels are tested with the thresholds of the last validation.
        """
        states = [each.weights for each in parts]
        self.inference.network.load_state_dict(mean_of(states))
        if layers := differing_statistics(self.inference.network, states):
            if self._sample is None:
                self._sample = self.data.sample(self.statistics_images)
            measure_statistics(self.inference, layers, self._sample.split(self.data.batch_size))
        thresholds = self.thresholds if split == "test" else None
        task, classes, device = self.inference.decisions.task, self.inference.classes, self.inference.device
        scores = scores_for(task, classes, device, self.loss, self.metrics, thresholds)
        for batch in self.data.eval_loader(split):
            real = batch.real()
            if len(real.labels):
                scores.update(self.inference(real.images), real.labels.to(self.inference.device))
        scored = scores.compute()
        chosen = tuple(each.threshold for each in scored.classes if isinstance(each, LabelScore))
        self.thresholds = chosen or None
        return {f"{split}/{name}": value for name, value in (scored.overall | scored.configured).items()}


def greedy(
    ingredients: Sequence[Ingredient], value_of: Callable[[Sequence[Ingredient]], float], better: int
) -> list[Step]:
    """Begin with the best and add the others, best first, each if the value does not get worse by it.

    Args:
        ingredients: at least one.
        value_of: value of the metric of the mean of some of them.
        better: 1 if larger values are better, -1 if smaller.
    """
    alone = {each.file: value_of([each]) for each in ingredients}
    soup: list[Ingredient] = []
    steps: list[Step] = []
    value = -float("inf")
    for each in sorted(ingredients, key=lambda each: -better * alone[each.file]):
        together = value_of([*soup, each]) if soup else alone[each.file]
        kept = not soup or better * together >= value
        if kept:
            soup, value = [*soup, each], better * together
        steps.append(Step(each.file, alone[each.file], together, kept))
    return steps


def uniform(ingredients: Sequence[Ingredient], value_of: Callable[[Sequence[Ingredient]], float]) -> list[Step]:
    """Add all, in their order."""
    return [
        Step(each.file, value_of([each]), value_of(ingredients[: number + 1]), kept=True)
        for number, each in enumerate(ingredients)
    ]


def summary_of(config: SoupConfig, file: Path, splits: Splits, figures: Mapping[str, float]) -> dict[str, Any]:
    """The keys of summary.json that a run's has, too; those of training are of the first checkpoint's run."""
    run = summary_next_to(file)
    return {
        "status": "finished",
        "metrics": dict(figures),
        "epochs": 0,
        "seed": run.get("seed", 0),
        "config": {**run.get("config", {}), "soup": config.method},
        "classes": list(splits.classes),
        "data": run.get("data", {}) | {"fingerprint": splits.fingerprint()},
        "checkpoint": f"checkpoints/{BEST}",
        "versions": versions(),
    }


def write(
    folder: Path,
    first: Path,
    weights: Mapping[str, Tensor],
    figures: Mapping[str, float],
    thresholds: Sequence[float] | None,
    summary: Mapping[str, Any],
) -> None:
    """Write the checkpoint, with the description of the first, and the summary."""
    content = read_checkpoint(first)
    own = {f"{PREFIX}{name}": tensor for name, tensor in weights.items()}
    checkpoint = {
        "graft": content["graft"]
        | {"metrics": dict(figures)}
        | ({} if thresholds is None else {"thresholds": list(thresholds)}),
        "state_dict": {name: own.get(name, tensor) for name, tensor in content["state_dict"].items()},
        "global_step": content["global_step"],
        "epoch": content["epoch"],
    }
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    with writing_atomically(folder / "checkpoints" / BEST) as file:
        torch.save(checkpoint, file)
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "summary.json", text.encode())


def log_result(
    steps: Sequence[Step],
    metric: str,
    figures: Mapping[str, float],
    tests: Mapping[str, Mapping[str, float]],
    better: int,
    folder: Path,
    headline: str,
) -> None:
    """Log the steps as a table, and the figures of the soup next to those of the best checkpoint alone."""
    table = Table(title=f"{metric} of each checkpoint, and of the soup with it", title_justify="left")
    table.add_column("checkpoint", overflow="fold")
    for name in ("alone", "together"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in the soup")
    for step in steps:
        kept = "yes" if step.kept else "no"
        table.add_row(Text(printable(str(step.file))), f"{step.alone:.4f}", f"{step.together:.4f}", kept)
    log_table(table)
    best = max((step.alone for step in steps), key=lambda value: better * value)
    log.info("%s  soup %.4f  best alone %.4f", metric, figures[metric], best)
    for name, values in tests.items():
        log.info("%s  test/loss %.4f  %s %.4f", name, values["test/loss"], headline, values[headline])
    log.info("written to  %s", folder)
