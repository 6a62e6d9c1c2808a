"""Graft from Python, e.g. in a notebook: the overrides of the command line, with objects as results.

    import graft
    experiment = graft.compose("experiment=quickstart", "seed=1")   # as in `graft train experiment=quickstart seed=1`
    experiment.pictures()                                           # some of the training images
    run = graft.train(experiment)
    run.metrics["test/acc"], run.curve("val/acc"), run.review().worst()
    predictor = graft.load(run.folder)                              # stays in memory
    predictor.predict(["photo.jpg", array])
    module, data, trainer = graft.build(experiment)                 # the parts, for a program of your own

Nothing here imports torch until something is computed. Mistakes are GraftErrors, as on the command line.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from graft.errors import ConfigError, DataError
from graft.system.escaping import PrintableFormatter

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from omegaconf import DictConfig
    from PIL import Image

    from graft.data.splits import Splits
    from graft.data.training_data import TrainingData
    from graft.learning.module import TransferModule
    from graft.review.evaluated_images import EvaluatedImages
    from graft.review.predictions import Prediction
    from graft.tasks.predict import Images, Predictor

__all__ = ["Built", "Experiment", "FinishedRun", "advise", "build", "compose", "load", "predict", "train"]

Source = str | os.PathLike[str]

log = logging.getLogger("graft")


@dataclass(frozen=True)
class Experiment:
    """The configuration that the overrides of a command compose to; `print` shows it as YAML.

    Attributes:
        config: every key, e.g. `config.optimizer.lr`; it may be changed.
        overrides: those of the command, e.g. ("model=vgg16", "seed=1").
        picked: the option chosen of each group, e.g. {"augment": "basic"}.
    """

    config: "DictConfig"
    overrides: tuple[str, ...] = ()
    picked: dict[str, str] | None = None

    def __str__(self) -> str:
        from omegaconf import OmegaConf

        return OmegaConf.to_yaml(self.config, resolve=True)

    def splits(self) -> "Splits":
        """The images that train, validate and test, with their classes; downloaded where needed."""
        from graft.config.registration import typed
        from graft.config.schema import TrainConfig
        from graft.tasks.data import open_data

        return open_data(typed(self.config, TrainConfig))

    def pictures(
        self, part: str = "train", count: int = 20, *, columns: int = 5, augmented: bool = False
    ) -> "Image.Image":
        """Some images of "train", "val" or "test" with their classes, as the network sees them.

        Args:
            part: of the data set.
            count: number of images, chosen by their names alone: the same ones each time.
            columns: number of images in a row.
            augmented: show training images with the augmentation of the run: one image per row, one epoch per column.

        Raises:
            ConfigError: `augmented` for images that are not augmented, of "val" or "test".
        """
        from graft.config.registration import plain, typed
        from graft.config.schema import TrainConfig
        from graft.data.augment import Augment
        from graft.models.configured import preprocessing_of
        from graft.review.evaluated_images import augmented as augmented_images
        from graft.review.evaluated_images import labelled

        if augmented and part != "train":
            raise ConfigError(f"pictures(part={part!r}, augmented=True): only training images are augmented.")
        splits = self.splits()
        if augmented:
            cfg = typed(self.config, TrainConfig)
            augment, preprocessing = Augment.of(plain(cfg.augment)), preprocessing_of(self.config)
            return augmented_images(splits.train, splits.classes, preprocessing, augment, cfg.seed, count, columns)
        return labelled(splits.parts()[part], splits.classes, preprocessing_of(self.config), part, count, columns)


def compose(*overrides: str, task: str = "train", config_dir: Source | None = None) -> Experiment:
    """Compose a configuration from the overrides of a command.

    Args:
        overrides: as on the command line, e.g. "model=vgg16", "optimizer.lr=1e-3".
        task: whose configuration: "train", "evaluate", "predict", ….
        config_dir: a folder of further option files, as --config-dir on the command line.

    Raises:
        ConfigError: a group, an option or a key that does not exist, a value of the wrong kind; names the nearest.
    """
    from omegaconf import open_dict

    from graft.cli import explain
    from graft.config.composing import compose_config

    for word in overrides:
        if word.lstrip("+").startswith("hydra") and not word.startswith("hydra.searchpath="):
            raise ConfigError(
                f"{word}: keys of Hydra itself have no effect from Python.\n"
                "Leave it out; graft.train and graft.build take the run's folder as folder=PATH."
            )
    words = [*overrides] if config_dir is None else [*overrides, _search_path(config_dir)]
    try:
        config = compose_config(task, words)
    except Exception as error:
        if message := explain(error, task):
            raise ConfigError(message.strip()) from None
        raise
    picked = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return Experiment(config, overrides, picked)


def train(*experiment: Experiment | str, folder: Source | None = None, echo: bool = True) -> "FinishedRun":
    """Train as `graft train` does: fit, keep the best checkpoint, test it, write the run folder.

    Args:
        experiment: a composed one, or the overrides to compose one from.
        folder: the run's; by default a new one, `outputs/train/DATE_TIME` (see `paths.outputs`).
        echo: write the log to stdout, as the command does; train.log has it either way.

    Raises:
        ConfigError, DataError, WeightsError, …: as for the command, before long work begins.
    """
    from graft.config.registration import typed
    from graft.config.schema import TrainConfig
    from graft.tasks.locations import check_locations
    from graft.tasks.prepare import prepare
    from graft.tasks.train import Command
    from graft.tasks.train import train as run_to_its_end

    chosen = _chosen("train", experiment)
    config = typed(chosen.config, TrainConfig)
    check_locations(config, {"folder": config.paths.outputs if folder is None else folder})
    new = _new_name(config.paths.outputs, "train", folder)
    with prepare(config, chosen.overrides, new, generated_name=folder is None) as prepared:
        command = Command(prepared.folder, list(chosen.overrides), dict(chosen.picked or {}))
        _write_configuration(chosen, command.folder)
        with _log_of(command.folder, echo):
            run_to_its_end(config, command, prepared)
    return FinishedRun(command.folder)


def advise(*overrides: str, folder: Source | None = None, echo: bool = True) -> dict[str, Any]:
    """Predict, as `graft advise` does, how accurate networks would be on a data set, before any of them is trained.

        advice = graft.advise("data=flowers", "models=[squeezenet1_1,resnet18]")
        advice["candidates"][0]["predicted_accuracy"], advice["candidates"][0]["command"]

    Args:
        overrides: of `graft advise`.
        folder: for advise.json and advise.html; by default a new one, `outputs/advise/DATE_TIME`.
        echo: write the log to stdout, as the command does; advise.log has it either way.

    Returns:
        The content of advise.json: the candidates, the best first, and what they rest on.

    Raises:
        ConfigError, DataError, WeightsError, …: as for the command.
    """
    from graft.system.folder_lock import is_generated
    from graft.tasks import advise as task

    config = compose(*overrides, task="advise").config
    if folder is not None:
        config.folder = os.fspath(folder)
    where = task.claimed(config, overrides, Path(config.folder).expanduser(), is_generated(config, "folder"))
    with _log_of(where, echo, "advise.log"):
        return task.advise(config, overrides, where)


class Built(NamedTuple):
    """The parts of a run, see `build`.

    Attributes:
        module: the network with its loss, optimizer and schedule; called with uint8 images [B, 3, H, W] it gives logits
            [B, C].
        data: `train_dataloader`, `val_dataloader` and `test_dataloader` give batches of images, labels and indices.
        trainer: with the configured callbacks and loggers.
    """

    module: "TransferModule"
    data: "TrainingData"
    trainer: "pl.Trainer"


def build(*experiment: Experiment | str, folder: Source | None = None) -> Built:
    """Build what `graft train` trains, without training it: for a loop, a Trainer or a data set of your own.

        module, data, trainer = graft.build("experiment=quickstart")
        trainer.fit(module, datamodule=data)
        trainer.test(module, datamodule=data, ckpt_path="best", weights_only=True)
        module.results["test/acc"]

    The data are downloaded where needed, pretrained weights are loaded and the global generators are seeded with
    `seed`. Training so gives the weights of `graft.train`. What that adds is left to the caller: the baseline
    (`trainer.baseline`), the test of the best checkpoint (`trainer.test`), cached features (`cache`), the figures in
    TensorBoard (`review`) and summary.json, so that `graft compare` does not list the folder. Its checkpoints are
    complete: `graft evaluate`, `predict`, `export` and `graft.load` read them.

    Args:
        experiment: a composed one, or the overrides to compose one from.
        folder: where checkpoints, metrics.csv and TensorBoard files go; it must not hold another run. By default a new
            one, `outputs/build/DATE_TIME`.

    Raises:
        ConfigError, DataError, WeightsError, …: as `train`; also for `resume` and for several devices.
    """
    from graft.config.registration import typed
    from graft.config.schema import TrainConfig
    from graft.system import downloads
    from graft.tasks.checks import settle
    from graft.tasks.locations import check_locations
    from graft.tasks.prepare import prepare

    chosen = _chosen("build", experiment)
    config = typed(chosen.config, TrainConfig)
    check_locations(config, {"folder": config.paths.outputs if folder is None else folder})
    new = _new_name(config.paths.outputs, "build", folder)
    prepared = prepare(config, chosen.overrides, new, generated_name=folder is None)
    try:
        with prepared:
            settle(config, chosen.overrides)
            downloads.configure(config.download)
            from graft.tasks import fit  # torch and Lightning only now

            parts, trainer = fit.build(config, prepared.folder)
    except BaseException:
        with suppress(OSError):
            prepared.folder.rmdir()  # which fails unless it is empty
        raise
    for note in parts.notes:
        log.warning("note  %s", note)
    return Built(parts.module, parts.data, trainer)


def load(checkpoint: Source | Sequence[Source] | None, *overrides: str, trust: Sequence[str] = ()) -> "Predictor":
    """Load a network once, to predict any number of images with it.

        predictor = graft.load(run.folder)
        [prediction] = predictor.predict("photo.jpg")
        prediction.classes[0], prediction.probabilities[0]

    Args:
        checkpoint: a run's folder or a .ckpt file; a list of them is an ensemble, with the mean of the probabilities;
            None with an override such as "model=vgg16", for ImageNet's classes.
        overrides: of `graft predict`, e.g. "topk=3", "trainer.accelerator=cpu".
        trust: packages that may be imported where the checkpoint names a network of your own, e.g. ["my_package"].

    Raises:
        ConfigError: neither a checkpoint nor a model, or both; a network of a package that is not trusted.
        TrainingError: no checkpoint of Graft, or a damaged one.
    """
    from graft.config.overrides import quoted_text

    words = [*overrides]
    if isinstance(checkpoint, str | os.PathLike):
        words.append(f"checkpoint={os.fspath(checkpoint)}")
    elif checkpoint is not None:
        words.append(f"checkpoint=[{','.join(quoted_text(os.fspath(each)) for each in checkpoint)}]")
    if trust:
        words.append(f"trust=[{','.join(trust)}]")
    return _predictor(words)


def predict(source: "Images", *overrides: str) -> "list[Prediction]":
    """Classes and probabilities of images, as `graft predict` gives them; to predict repeatedly, see `load`.

    Args:
        source: one or several of: a path (a file, a folder at any depth, a pattern), a PIL image, a uint8 array
            [H, W, 3] (RGB) or [H, W] (grey); for a network of another format any array [H, W, bands].
        overrides: by what, e.g. "checkpoint=RUN_FOLDER", or "model=vgg16" for ImageNet's classes; "topk=3".

    Returns:
        One per image, in the order they are found, each with its `topk` classes, the most probable first.

    Raises:
        ConfigError: neither a checkpoint nor a model, or both.
        DataError: no image there, or one that cannot be read.
    """
    return _predictor(overrides).predict(source)


def _predictor(overrides: Sequence[str]) -> "Predictor":
    from graft.config.commands import PredictConfig
    from graft.config.registration import typed
    from graft.tasks.command_checks import check_predictor
    from graft.tasks.predict import Predictor, restore

    cfg = typed(compose(*overrides, task="predict").config, PredictConfig)
    check_predictor(cfg)
    return Predictor(restore(cfg), cfg)


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run, whether trained here or by `graft train`: `FinishedRun("outputs/train/…")`.

    Raises:
        DataError: the folder holds no finished run.
    """

    folder: Path

    def __post_init__(self) -> None:
        from graft.tasks.run import read_summary

        object.__setattr__(self, "folder", Path(self.folder))
        status = read_summary(self.folder).get("status")
        if status != "finished":
            raise DataError(f"{self.folder}: {f'this run is {status}' if status else 'no run (no summary.json)'}.")

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        from graft.tasks.run import read_summary

        return read_summary(self.folder)

    @property
    def metrics(self) -> dict[str, float]:
        """The final metrics: "val/acc" of the checkpoint, "test/acc", "test/acc/CLASS", …."""
        return dict(self.summary["metrics"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by index."""
        return tuple(self.summary["classes"])

    @property
    def checkpoint(self) -> Path:
        """The file of the weights that were tested.

        Raises:
            DataError: summary.json names one outside of the run's folder.
        """
        name = Path(str(self.summary["checkpoint"]))
        if name.is_absolute() or ".." in name.parts:
            raise DataError(f"{self.folder}: its summary.json names a checkpoint outside of this folder.")
        return self.folder / name

    @property
    def table(self) -> list[dict[str, float]]:
        """The rows of metrics.csv: one for each step at which metrics were logged."""
        from graft.learning.metrics_csv import read_metrics

        try:
            return read_metrics(self.folder / "metrics.csv").rows
        except FileNotFoundError:
            raise DataError(f"{self.folder}: no metrics.csv; the run had logger.csv=false.") from None
        except OSError as error:
            raise DataError(f"{self.folder / 'metrics.csv'}: {error.strerror or error}") from error

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """(steps, values) of e.g. "val/acc", ready for `axes.plot(*run.curve("val/acc"))`.

        Raises:
            ConfigError: no metric of this name was logged; names those that were.
        """
        from graft.config.fields import one_of

        rows = self.table
        one_of("metric", metric, dict.fromkeys(name for row in rows for name in row))
        found = [(int(row["step"]), row[metric]) for row in rows if metric in row]
        return [step for step, _ in found], [value for _, value in found]

    def review(self, part: str = "test", *, trust: Sequence[str] = ()) -> "EvaluatedImages":
        """The checkpoint's predictions for every image of "train", "val" or "test": accuracy, figures, grids of images.

        Args:
            part: which images.
            trust: packages of your own that may be imported where the checkpoint names them, e.g. ["my_package"].

        Raises:
            ConfigError: the checkpoint names a data set of another package.
            DataError: the data set is no longer where it was.
        """
        from graft.tasks.review import review

        return review(self.checkpoint, part, trust)


def _chosen(name: str, words: Sequence[Experiment | str]) -> Experiment:
    """The experiment of the function `name`, which takes a composed one or overrides."""
    if len(words) == 1 and isinstance(words[0], Experiment):
        return words[0]
    overrides = [each for each in words if isinstance(each, str)]
    if len(overrides) < len(words):
        raise ConfigError(f"{name}: either one composed experiment, or overrides such as 'model=vgg16'; not both.")
    return compose(*overrides)


def _new_name(outputs: str, kind: str, folder: Source | None) -> Path:
    """`folder`, or a name for a new one."""
    return Path(outputs) / kind / f"{datetime.now():%Y-%m-%d_%H-%M-%S}" if folder is None else Path(folder)


def _search_path(config_dir: Source) -> str:
    """The override by which Hydra looks for options in `config_dir` too.

    Raises:
        ConfigError: it is no folder.
    """
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"config_dir={folder}: there is no such folder.")
    quoted = f"file://{folder}".replace("\\", "\\\\").replace("'", "\\'")
    return f"hydra.searchpath=['{quoted}']"


def _write_configuration(experiment: Experiment, folder: Path) -> None:
    """Write the configuration and the overrides, as Hydra does for a command."""
    from omegaconf import OmegaConf

    from graft.system.files import write_atomically

    write_atomically(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(experiment.config).encode())
    write_atomically(
        folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(experiment.overrides))).encode()
    )


@contextmanager
def _log_of(folder: Path, echo: bool, name: str = "train.log") -> Iterator[None]:
    """A context whose log goes to a file in `folder`, and to stdout if `echo` is set, as with the command."""
    handlers: list[logging.Handler] = [logging.FileHandler(folder / name, encoding="utf-8")]
    handlers += [logging.StreamHandler(sys.stdout)] if echo else []
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        handler.setFormatter(PrintableFormatter())
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(level)
        log.propagate = propagate
        for handler in handlers:
            log.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                handler.close()
