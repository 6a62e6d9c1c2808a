"""The review of a training run: what TensorBoard and `graft compare` show, written during and after training."""

import copy
import dataclasses
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image
from torch import Tensor

from graft.config.schema import FiguresConfig, ReviewConfig, TrainConfig
from graft.config.targets import accepts, bind
from graft.config.task import MULTI_LABEL, SINGLE_LABEL
from graft.data.labels import text_of
from graft.data.training_data import TrainingData
from graft.data.transforms import black
from graft.errors import ConfigError
from graft.learning.callbacks.first_batch import FirstBatch
from graft.learning.callbacks.keep_predictions import KeepPredictions
from graft.learning.callbacks.step_statistics import GradientNorms, StepTime
from graft.learning.loggers import CurvesFirst, whole_run_tag
from graft.learning.metrics_csv import read_metrics
from graft.learning.module import TransferModule
from graft.learning.predictions import AnyPredictions, Array, LabelPredictions, Predictions
from graft.learning.run_files import CONFUSION, CURVES, EVENTS, LABELS, METRICS
from graft.learning.trackers import show_image, tracker_named, tracker_of
from graft.models.heads import head_modules
from graft.review import board, grids
from graft.review.curves import curves
from graft.review.drawing import rendered
from graft.review.figures import confusion
from graft.review.gradcam import grad_cam
from graft.review.label_figures import scores_per_label
from graft.review.layers import layer_markdown
from graft.review.record import record_of, write_record
from graft.system.files import write_atomically

log = logging.getLogger("graft")


@dataclasses.dataclass(frozen=True)
class RunChoices:
    """The choices that identify a run.

    Attributes:
        choices: option of each group and value of each key that distinguishes runs, and the seed.
        swept: keys that the sweep of this run varies; empty for a run outside of a sweep.
        fingerprint: hash of its data, for checkpoints.
        group: name of its sweep, for trackers.
    """

    choices: Mapping[str, Any]
    swept: Collection[str] = ()
    fingerprint: str | None = None
    group: str | None = None


class Review:
    """Writes the review of a training run; only the first process writes.

    Args:
        config: of the run.
        module: the network and its plan.
        data: the images.
        folder: of the run.
        choices: for HPARAMS.
    """

    def __init__(
        self, config: TrainConfig, module: TransferModule, data: TrainingData, folder: Path, choices: RunChoices
    ) -> None:
        self.config, self.module, self.data, self.folder, self.choices = config, module, data, folder, choices
        self.own = config.review if data.pictures else without_pictures(config.review)
        self.classes, self.task = module.classes, module.decisions.task
        self.figures = build_figures(config.review.figures)
        self.fresh = not any(folder.glob(EVENTS))
        self.trainer: pl.Trainer | None = None
        self.keep = self._keeper()

    def _keeper(self) -> KeepPredictions | None:
        own, loggers = self.own, self.config.logger.parts()
        shown = (
            (any((self.figures, own.images, own.worst, own.gradcam)) and self._shows_images)
            or (any((own.curves, own.embedding)) and "tensorboard" in loggers)
        )  # fmt: skip
        if not (shown or ((own.record or own.pictures) and loggers)):
            return None
        by_score = self.config.callbacks.checkpoint == "best"
        return KeepPredictions(
            monitor=self.config.optimized_metric if by_score else None,
            mode=self.config.mode(self.config.optimized_metric),
            # a compiled network does not see hooks that come later
            head=None if self.config.trainer.compile else head_modules(self.module.network)[0],
            scores=min(own.curves, len(self.classes)) if "tensorboard" in loggers else 0,
            features=own.embedding if "tensorboard" in loggers else 0,
        )

    @property
    def _shows_images(self) -> bool:
        """Whether any logger of the configuration shows images."""
        return any(name == "tensorboard" or tracker_named(node) for name, node in self.config.logger.parts().items())

    def callbacks(self) -> list[Callback]:
        """The callbacks that collect what the review shows; none with review=none."""
        every = self.config.trainer.log_every_n_steps
        callbacks: list[Callback | None] = [
            GradientNorms(every) if self.own.measures else None,
            StepTime(every) if self.own.measures and "tensorboard" in self.config.logger.parts() else None,
            FirstBatch(self.own.images, self._show_batch) if self.own.images and self._shows_images else None,
            self.keep,
        ]
        return [callback for callback in callbacks if callback is not None]

    @property
    def writer(self) -> Any:
        """The run's TensorBoard writer; None without TensorBoard and in all processes but the first."""
        assert self.trainer is not None
        loggers = [logger for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        return loggers[0].experiment if loggers and self.trainer.is_global_zero else None

    @property
    def _trackers(self) -> list[Logger]:
        """The loggers in addition to TensorBoard that show images; none in all processes but the first."""
        assert self.trainer is not None
        return [each for each in self.trainer.loggers if tracker_of(each)] if self.trainer.is_global_zero else []

    # -- at the start --------------------------------------------------------------------------------------

    def open(self, trainer: pl.Trainer, notes: Sequence[str]) -> None:
        """Write the texts, the graph, and the run's row in HPARAMS; a resumed run already has them."""
        self.trainer = trainer
        if self.writer is None or not self.fresh:
            return
        if self.own.texts:
            with logging_failure("texts"):
                choices = self.choices.choices
                board.open_session(self.writer, choices, first=self.choices.swept, task=self.task)
                config = yaml.safe_dump(self.module.provenance["config"], sort_keys=False, allow_unicode=True)
                board.put_text(self.writer, board.CONFIG, board.verbatim(config))
                board.put_text(self.writer, board.LAYERS, layer_markdown(self.module.plan))
                lines = [board.literal(note) for note in notes] or ["nothing to note"]
                board.put_text(self.writer, board.NOTES, "\n".join(f"- {line}" for line in lines))
                board.put_curves_layout(self.writer, self.task)
        if self.own.graph:
            with logging_failure("graph"):
                self._put_graph()

    def _put_graph(self) -> None:
        module = self.module
        modes = {layer: layer.training for layer in module.modules()}
        module.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            self.writer.add_graph(module.network, module.normalise(black(self.data.preprocessing, 1)))
        for layer, training in modes.items():
            layer.training = training

    def _show_batch(self, images: Tensor, targets: Tensor, indices: Sequence[int]) -> None:
        if self.writer is None and not self._trackers:
            return
        with logging_failure("first training batch"):
            pictures = [*images.permute(0, 2, 3, 1).numpy()]
            shares = targets if targets.dim() == 2 else torch.eye(len(self.classes))[targets]
            titles = [
                (grids.shortened(text_of(row > 0, self.classes), grids.LETTERS),)
                if self.task is MULTI_LABEL
                else mixture(row.tolist(), self.classes)
                for row in shares
            ]
            tiles = [grids.Tile(image, title) for image, title in zip(pictures, titles, strict=True)]
            caption = "augmented, before normalisation"
            self._put(board.TRAIN_BATCH, grids.grid(tiles, f"First training batch\n{caption}"), 0)

    # -- at the end ----------------------------------------------------------------------------------------

    def conclude(self, trainer: pl.Trainer, metrics: Mapping[str, float], checkpoint: Mapping[str, Any]) -> None:
        """Write the pictures of the best epoch and of the test, the record for comparisons, and the final metrics.

        Args:
            trainer: after fit and test; the module holds the best weights.
            metrics: the run's final metrics.
            checkpoint: best.ckpt, whose weights those are.
        """
        self.trainer = trainer
        if self.keep is not None and trainer.is_global_zero:
            best, test = self.keep.best, self.keep.test
            step, epoch = checkpoint["global_step"], checkpoint["epoch"]
            if test is not None:
                test = dataclasses.replace(test, step=step, epoch=epoch)
            if best is not None and best.step != step:  # the review was off when the best epoch was trained
                best = None
                log.info("note  the best epoch's predictions were not kept: no pictures of the validation")
            if self.writer is not None or self._trackers:
                self._show(best, test)
            if self.own.record:
                with logging_failure("review.npz"):
                    self._record(best, test)
            if self.own.pictures:
                with logging_failure(CONFUSION):
                    self._draw_summary(best if test is None else test, "validation" if test is None else "test")
        if self.writer is not None and self.own.texts:
            logged = [name for name in board.finals(self.task) if name.startswith("test/") and self._ordered]
            board.close_session(self.writer, metrics, trainer.global_step, success=True, logged=logged, task=self.task)

    @property
    def _ordered(self) -> bool:
        """Whether the run's TensorBoard logger arranges tags itself."""
        assert self.trainer is not None
        return any(isinstance(logger, CurvesFirst) for logger in self.trainer.loggers)

    def _draw_summary(self, predictions: AnyPredictions | None, images: str) -> None:
        """Write confusion.png, unless there are more classes than it can show; with several labels labels.png."""
        if predictions is None or not len(predictions):
            return
        caption = f"{images} images · {self._caption(predictions)}"
        picture: Image.Image | None
        if isinstance(predictions, LabelPredictions):
            name, picture = LABELS, scores_per_label(predictions, self.classes, caption)
        else:
            name, picture = CONFUSION, confusion(predictions, self.classes, caption)
        if picture is not None:
            write_atomically(self.folder / name, grids.encoded(picture, photograph=False))

    def draw_curves(self) -> None:
        """Write curves.png from metrics.csv, in the first process; also for a run that was interrupted."""
        if not self.own.pictures or self.trainer is None or not self.trainer.is_global_zero:
            return
        with logging_failure(CURVES):
            if (file := self.folder / METRICS).is_file():
                name = self.folder.absolute().name
                metric = self.config.optimized_metric
                picture = curves(read_metrics(file).rows, name, metric, self.config.mode(metric))
                if picture is not None:
                    write_atomically(self.folder / CURVES, grids.encoded(picture, photograph=False))

    def failed(self) -> None:
        """Mark the run as failed in HPARAMS."""
        if self.trainer is not None and self.writer is not None and self.own.texts:
            board.close_session(
                self.writer, self.module.results, self.trainer.global_step, success=False, task=self.task
            )

    def _show(self, best: AnyPredictions | None, test: AnyPredictions | None) -> None:
        for what, enabled, predictions, put in self._pictures(best, test):
            if enabled and predictions is not None and len(predictions):
                with logging_failure(what):
                    put(predictions)

    def _pictures(
        self, best: AnyPredictions | None, test: AnyPredictions | None
    ) -> Iterator[tuple[str, object, AnyPredictions | None, Callable[[AnyPredictions], None]]]:
        own = self.own
        yield "validation images", own.images, best, self._put_validation
        yield "worst images", own.worst, best, self._put_worst
        for name in self.figures:
            yield f"figure {name}", True, best, partial(self._put_figure, name)
        yield "calibration error", self.figures and self.task is SINGLE_LABEL, best, self._put_calibration_error
        yield "precision-recall curves", own.curves and self.writer, best, self._put_curves
        yield "Grad-CAM", own.gradcam, best, self._put_grad_cam
        yield "embedding", own.embedding and self.writer, best, self._put_embedding
        yield "test images", own.images, test, self._put_test

    def _put_validation(self, best: AnyPredictions) -> None:
        positions = best.sample(self.own.images, self.data.splits.val.names)
        heading = f"Validation images\n{self._caption(best)} · the same images in every run"
        self._put_grid(board.PREDICTIONS, best, positions, "val", heading)

    def _put_worst(self, best: AnyPredictions) -> None:
        positions = best.worst(self.own.worst)
        of = "the true class" if self.task is SINGLE_LABEL else "what is true of a label"
        first = f"Most wrong: lowest probability of {of}" if len(positions) else "No mistakes"
        self._put_grid(board.WORST, best, positions, "val", f"{first}\n{self._caption(best)}")

    def _put_test(self, test: AnyPredictions) -> None:
        positions = test.sample(self.own.images, self.data.splits.test.names)
        heading = f"Test images\n{self._caption(test)} · the same images in every run"
        self._put_grid(board.TEST_PREDICTIONS, test, positions, "test", heading)
        if self.figures and isinstance(test, Predictions):
            self._put_scalar("test/ece", test.calibration().error, test.step)

    def _put_grid(self, tag: str, predictions: AnyPredictions, positions: Array, part: str, heading: str) -> None:
        images = [self._image(predictions, position, part) for position in positions]
        tiles = grids.verdicts(predictions, positions, images, self.classes)
        self._put(tag, grids.grid(tiles, heading), predictions.step)

    def _put(self, tag: str, images: Image.Image, step: int) -> None:
        self._put_picture(tag, images, step, photograph=not grids.enlarged(self.data.preprocessing.size[0]))

    def _put_picture(self, tag: str, picture: Image.Image, step: int, *, photograph: bool) -> None:
        if self.writer is not None:
            board.put_picture(self.writer, tag, picture, step, photograph=photograph)
        for logger in self._trackers:
            show_image(logger, tag, picture, step)

    def _put_scalar(self, metric: str, value: float, step: int) -> None:
        if self.writer is not None:
            self.writer.add_scalar(whole_run_tag(metric), value, step)
        for logger in self._trackers:
            logger.log_metrics({metric: value}, step)

    def _put_figure(self, name: str, best: AnyPredictions) -> None:
        target = self.own.figures.parts()[name]["_target_"]
        supplied = {"caption": self._caption(best)} if accepts(target, "caption") else {}
        figure = self.figures[name](best, self.classes, **supplied)
        if figure is not None:
            picture = figure if isinstance(figure, Image.Image) else rendered(figure)
            self._put_picture(board.FIGURE.format(name), picture, best.step, photograph=False)

    def _put_calibration_error(self, best: AnyPredictions) -> None:
        assert isinstance(best, Predictions)
        self._put_scalar("val/ece", best.calibration().error, best.step)

    def _put_curves(self, best: AnyPredictions) -> None:
        board.put_curves(self.writer, best, self.classes, self.own.curves)

    def _put_grad_cam(self, best: AnyPredictions) -> None:
        positions = best.sample(self.own.gradcam, self.data.splits.val.names)
        images = np.stack([self._image(best, position, "val") for position in positions])
        module = self.module
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(module.device)
        predicted = torch.from_numpy(best.most_probable(positions)).to(module.device)
        heat = grad_cam(module.network, pixels, predicted, module.normalise)
        if heat is None:
            log.info("note  no Grad-CAM: this network has no feature map before its head")
            return
        overlaid = [grids.overlaid(image, weights.numpy()) for image, weights in zip(images, heat, strict=True)]
        tiles = grids.verdicts(best, positions, overlaid, self.classes)
        of = "predicted class" if self.task is SINGLE_LABEL else "most probable label"
        heading = f"Grad-CAM: evidence for the {of}\n{self._caption(best)}"
        self._put(board.GRAD_CAM, grids.grid(tiles, heading, columns=2), best.step)

    def _put_embedding(self, best: AnyPredictions) -> None:
        if not len(best.feature_indices):
            return
        images = [self.data.picture("val", index) for index in best.feature_indices]
        thumbnails = np.stack([grids.thumbnail(image, board.THUMBNAIL) for image in images])
        board.put_embedding(self.writer, best, thumbnails, self.classes)

    def _record(self, best: AnyPredictions | None, test: AnyPredictions | None) -> None:
        part, predictions = ("test", test) if test is not None else ("val", best)
        if predictions is None:
            return
        names = self.data.splits.parts()[part].names
        hardest = predictions.worst(self.own.record // 3)
        positions = [*hardest, *predictions.sample(self.own.record - len(hardest), names)]
        pictures = [(position, self._image(predictions, position, part)) for position in dict.fromkeys(positions)]
        write_record(self.folder, record_of(predictions, part, self.classes, names, pictures))

    def _image(self, predictions: AnyPredictions, position: int, part: str) -> Array:
        return self.data.picture(part, int(predictions.indices[position]))

    def _caption(self, predictions: AnyPredictions) -> str:
        when = f"epoch {predictions.epoch + 1}, step {predictions.step}"
        return f"{when} · {len(predictions):,} images · {predictions.headline}"


def without_pictures(review: ReviewConfig) -> ReviewConfig:
    """A copy of the review's configuration without pictures of single images, for data that cannot give them."""
    reduced = copy.copy(review)
    for key in ("images", "worst", "gradcam", "embedding", "record"):
        setattr(reduced, key, 0)
    return reduced


def mixture(shares: Sequence[float], classes: Sequence[str]) -> tuple[str, ...]:
    """The class of a training image, or the two largest shares of a mixed one."""
    order = sorted(range(len(shares)), key=lambda i: -shares[i])[:2]
    parts = [i for i in order if shares[i] > 0.005]
    if len(parts) == 1:
        return (grids.shortened(classes[parts[0]], grids.LETTERS),)
    return tuple(f"{100 * shares[i]:.0f} % {grids.shortened(classes[i], grids.LETTERS - 6)}" for i in parts)


Figure = Callable[..., Any]


def build_figures(figures: FiguresConfig) -> dict[str, Figure]:
    """The figures of `review.figures`, by name.

    Raises:
        ConfigError: a target that cannot be imported, or the name of a picture that Graft makes itself.
    """
    for name in figures.parts():
        if board.FIGURE.format(name) in board.GRIDS:
            raise ConfigError(f"review.figures.{name}: Graft makes a picture of this name itself. Rename the figure.")
    return {name: bind(f"review.figures.{name}", node) for name, node in figures.parts().items()}


@contextmanager
def logging_failure(what: str) -> Iterator[None]:
    """A context that logs an exception instead of raising it: a failed picture must not fail the run."""
    try:
        yield
    except Exception as error:
        log.warning("review: no %s (%s: %s)", what, type(error).__name__, error)
        log.debug("", exc_info=True)
