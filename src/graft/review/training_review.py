"""From a run's predictions to what TensorBoard and the comparison page show of them."""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from graft.config.schema import TrainConfig
from graft.data.datamodule import ImageDataModule
from graft.learning.callbacks.first_batch import FirstBatch
from graft.learning.callbacks.keep_predictions import KeepPredictions
from graft.learning.callbacks.step_statistics import GradientNorms, StepTime
from graft.learning.module import Learner
from graft.learning.predictions import Array, Predictions
from graft.models.heads import head_modules
from graft.review import board, figures, grids
from graft.review.gradcam import grad_cam
from graft.review.layers import layer_markdown
from graft.review.record import record_of, write_record

log = logging.getLogger("graft")

MATRIX = 2000
"""Most classes for which a confusion matrix is drawn; one of more has no dot a class and takes its square in memory."""


@dataclasses.dataclass(frozen=True)
class Told:
    """What the command line and the configuration say of a run.

    Attributes:
        choices: every choice by its key, and the seed.
        said: the keys that were set for this run.
        fingerprint: of its data, for checkpoints.
    """

    choices: Mapping[str, Any]
    said: Collection[str]
    fingerprint: str | None = None


class Review:
    """Shows a run: its callbacks while it trains, its pictures at the end. The first process alone writes.

    Args:
        config: the whole TrainConfig.
        learner: the network and its plan.
        data: the images.
        folder: the run's.
        told: for HPARAMS.
    """

    def __init__(self, config: TrainConfig, learner: Learner, data: ImageDataModule, folder: Path, told: Told) -> None:
        self.config, self.learner, self.data, self.folder, self.told = config, learner, data, folder, told
        self.own = config.review
        self.classes = learner.classes
        self.fresh = not any((folder / "tensorboard").glob("events*"))
        self.trainer: pl.Trainer | None = None
        self.keep = self._keeper()

    def _keeper(self) -> KeepPredictions | None:
        own, loggers = self.own, self.config.logger.parts()
        shown = "tensorboard" in loggers and any(
            (own.figures, own.images, own.worst, own.gradcam, own.curves, own.embedding)
        )
        if not (shown or (own.record and loggers)):
            return None
        by_score = self.config.callbacks.checkpoint == "best"
        return KeepPredictions(
            monitor=self.config.optimized_metric if by_score else None,
            # a compiled network does not see hooks that come later
            head=None if self.config.trainer.compile else head_modules(self.learner.network)[0],
            scores=min(own.curves, len(self.classes)) if "tensorboard" in loggers else 0,
            features=own.embedding if "tensorboard" in loggers else 0,
        )

    def callbacks(self) -> list[Callback]:
        """What watches the training; empty with review=none."""
        every = self.config.trainer.log_every_n_steps
        wanted: list[Callback | None] = [
            GradientNorms(every) if self.own.measures else None,
            StepTime(every) if self.own.measures and "tensorboard" in self.config.logger.parts() else None,
            FirstBatch(self.own.images, self._show_batch)
            if self.own.images and "tensorboard" in self.config.logger.parts()
            else None,
            self.keep,
        ]
        return [callback for callback in wanted if callback is not None]

    @property
    def writer(self) -> Any:
        """TensorBoard's writer of this run; None without TensorBoard and in the other processes."""
        assert self.trainer is not None
        loggers = [logger for logger in self.trainer.loggers if isinstance(logger, TensorBoardLogger)]
        return loggers[0].experiment if loggers and self.trainer.is_global_zero else None

    # -- at the start --------------------------------------------------------------------------------------

    def open(self, trainer: pl.Trainer, notes: Sequence[str]) -> None:
        """The texts, the graph, and the run's row in HPARAMS; a resumed run has them."""
        self.trainer = trainer
        if self.writer is None or not self.fresh:
            return
        if self.own.texts:
            with saying_what_fails("texts"):
                choices = self.told.choices
                files = {key for key, value in choices.items() if isinstance(value, str) and "/" in value}
                board.open_session(self.writer, choices, first=set(self.told.said) - files)
                config = yaml.safe_dump(self.learner.provenance["config"], sort_keys=False, allow_unicode=True)
                board.put_text(self.writer, board.CONFIG, board.verbatim(config))
                board.put_text(self.writer, board.LAYERS, layer_markdown(self.learner.plan))
                said = [board.literal(note) for note in notes] or ["nothing to note"]
                board.put_text(self.writer, board.NOTES, "\n".join(f"- {note}" for note in said))
        if self.own.graph:
            with saying_what_fails("graph"):
                self._put_graph()

    def _put_graph(self) -> None:
        size, learner = self.data.preprocessing.input_size, self.learner
        modes = {name: module.training for name, module in learner.named_modules()}
        learner.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of itself
            blank = torch.zeros(1, 3, size, size, dtype=torch.uint8)
            self.writer.add_graph(learner.network, learner.normalise(blank))
        for name, module in learner.named_modules():
            module.training = modes[name]

    def _show_batch(self, images: Tensor, targets: Tensor, indices: Sequence[int]) -> None:
        if self.writer is None:
            return
        with saying_what_fails("first training batch"):
            pictures = [*images.permute(0, 2, 3, 1).numpy()]
            shares = targets if targets.dim() == 2 else torch.eye(len(self.classes))[targets]
            tiles = [
                grids.Tile(image, mixture(row.tolist(), self.classes))
                for image, row in zip(pictures, shares, strict=True)
            ]
            said = "augmented, as the network sees it before normalisation"
            self._put(board.TRAIN_BATCH, grids.grid(tiles, f"First training batch\n{said}"), 0)

    # -- at the end ----------------------------------------------------------------------------------------

    def conclude(self, trainer: pl.Trainer, metrics: Mapping[str, float], checkpoint: Mapping[str, Any]) -> None:
        """The pictures of the best epoch and of the test, the record for comparisons, the final figures.

        Args:
            trainer: after fit and test; the learner holds the best weights.
            metrics: the run's final figures.
            checkpoint: best.ckpt, whose weights those are.
        """
        self.trainer = trainer
        if self.keep is not None and trainer.is_global_zero:
            best, test = self.keep.best, self.keep.test
            step, epoch = checkpoint["global_step"], checkpoint["epoch"]
            if test is not None:
                test = dataclasses.replace(test, step=step, epoch=epoch)
            if best is not None and best.step != step:  # resumed from before review was on
                best = None
                log.info("note  the best epoch's predictions were not kept: no pictures of the validation")
            if self.writer is not None:
                self._show(best, test)
            if self.own.record:
                with saying_what_fails("review.npz"):
                    self._record(best, test)
        if self.writer is not None and self.own.texts:
            board.close_session(self.writer, metrics, trainer.global_step, success=True)

    def failed(self) -> None:
        """Say in HPARAMS that the run failed."""
        if self.trainer is not None and self.writer is not None and self.own.texts:
            board.close_session(self.writer, self.learner.results, self.trainer.global_step, success=False)

    def _show(self, best: Predictions | None, test: Predictions | None) -> None:
        for what, wanted, predictions, put in self._pictures(best, test):
            if wanted and predictions is not None and len(predictions):
                with saying_what_fails(what):
                    put(predictions)

    def _pictures(
        self, best: Predictions | None, test: Predictions | None
    ) -> Iterator[tuple[str, object, Predictions | None, Callable[[Predictions], None]]]:
        own = self.own
        yield "validation images", own.images, best, self._put_validation
        yield "worst images", own.worst, best, self._put_worst
        yield "confusion matrix", own.figures and len(self.classes) <= MATRIX, best, self._put_confusion
        yield "accuracy per class", own.figures, best, self._put_per_class
        yield "calibration", own.figures, best, self._put_calibration
        yield "precision-recall curves", own.curves, best, self._put_curves
        yield "Grad-CAM", own.gradcam, best, self._put_grad_cam
        yield "embedding", own.embedding, best, self._put_embedding
        yield "test images", own.images, test, self._put_test

    def _put_validation(self, best: Predictions) -> None:
        positions = best.sample(self.own.images, self.data.splits.val.names)
        heading = f"Validation images\n{self._said_of(best)} · the same images in every run"
        self._put_grid(board.PREDICTIONS, best, positions, "val", heading)

    def _put_worst(self, best: Predictions) -> None:
        positions = best.worst(self.own.worst)
        first = "Most wrong: the true class was least probable" if len(positions) else "No mistakes"
        self._put_grid(board.WORST, best, positions, "val", f"{first}\n{self._said_of(best)}")

    def _put_test(self, test: Predictions) -> None:
        positions = test.sample(self.own.images, self.data.splits.test.names)
        heading = f"Test images\n{self._said_of(test)} · the same images in every run"
        self._put_grid(board.TEST_PREDICTIONS, test, positions, "test", heading)
        if self.own.figures:
            self.writer.add_scalar("test/ece", test.calibration().error, test.step)

    def _put_grid(self, tag: str, predictions: Predictions, positions: Array, part: str, heading: str) -> None:
        images = [self._image(predictions, position, part) for position in positions]
        tiles = grids.verdicts(predictions, positions, images, self.classes)
        self._put(tag, grids.grid(tiles, heading), predictions.step)

    def _put(self, tag: str, images: Image.Image, step: int) -> None:
        photograph = not grids.enlarged(self.data.preprocessing.input_size)
        board.put_picture(self.writer, tag, images, step, photograph=photograph)

    def _put_confusion(self, best: Predictions) -> None:
        confusion = best.confusion(len(self.classes))
        picture = figures.confusion_picture(confusion, self.classes, f"Confusion matrix\n{self._said_of(best)}")
        board.put_picture(self.writer, board.CONFUSION, picture, best.step, photograph=False)

    def _put_per_class(self, best: Predictions) -> None:
        correct, totals = best.per_class(len(self.classes))
        heading = f"Accuracy per class\n{self._said_of(best)}"
        picture = figures.accuracy_picture(correct, totals, self.classes, heading)
        board.put_picture(self.writer, board.PER_CLASS, picture, best.step, photograph=False)

    def _put_calibration(self, best: Predictions) -> None:
        calibration = best.calibration()
        picture = figures.calibration_picture(calibration, f"Calibration\n{self._said_of(best)}")
        board.put_picture(self.writer, board.CALIBRATION, picture, best.step, photograph=False)
        self.writer.add_scalar("val/ece", calibration.error, best.step)

    def _put_curves(self, best: Predictions) -> None:
        board.put_curves(self.writer, best, self.classes)

    def _put_grad_cam(self, best: Predictions) -> None:
        positions = best.sample(self.own.gradcam, self.data.splits.val.names)
        images = np.stack([self._image(best, position, "val") for position in positions])
        learner = self.learner
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(learner.device)
        said = torch.from_numpy(best.predicted[positions]).to(learner.device)
        heat = grad_cam(learner.network, pixels, said, learner.normalise)
        if heat is None:
            log.info("note  no Grad-CAM: this network has no map of places before its head")
            return
        beside = [grids.overlaid(image, where.numpy()) for image, where in zip(images, heat, strict=True)]
        tiles = grids.verdicts(best, positions, beside, self.classes)
        heading = f"Grad-CAM: what speaks for the predicted class\n{self._said_of(best)}"
        self._put(board.GRAD_CAM, grids.grid(tiles, heading, columns=2), best.step)

    def _put_embedding(self, best: Predictions) -> None:
        if not len(best.feature_indices):
            return
        images = [self.data.picture("val", index) for index in best.feature_indices]
        thumbnails = np.stack([grids.thumbnail(image, board.THUMBNAIL) for image in images])
        board.put_embedding(self.writer, best, thumbnails, self.classes)

    def _record(self, best: Predictions | None, test: Predictions | None) -> None:
        part, predictions = ("test", test) if test is not None else ("val", best)
        if predictions is None:
            return
        names = self.data.splits.parts()[part].names
        hardest = predictions.worst(self.own.record // 3)
        positions = [*hardest, *predictions.sample(self.own.record - len(hardest), names)]
        pictures = [(position, self._image(predictions, position, part)) for position in dict.fromkeys(positions)]
        write_record(self.folder, record_of(predictions, part, self.classes, names, pictures))

    def _image(self, predictions: Predictions, position: int, part: str) -> Array:
        return self.data.picture(part, int(predictions.indices[position]))

    def _said_of(self, predictions: Predictions) -> str:
        when = f"epoch {predictions.epoch + 1}, step {predictions.step}"
        return f"{when} · {len(predictions):,} images · accuracy {predictions.accuracy:.3f}"


def mixture(shares: Sequence[float], classes: Sequence[str]) -> tuple[str, ...]:
    """The class of a training image, or its two largest shares."""
    order = sorted(range(len(shares)), key=lambda i: -shares[i])[:2]
    parts = [i for i in order if shares[i] > 0.005]
    if len(parts) == 1:
        return (grids.shortened(classes[parts[0]], grids.LETTERS),)
    return tuple(f"{100 * shares[i]:.0f} % {grids.shortened(classes[i], grids.LETTERS - 6)}" for i in parts)


@contextmanager
def saying_what_fails(what: str) -> Iterator[None]:
    """A picture that cannot be made is said in the log; it does not take the run with it."""
    try:
        yield
    except Exception as error:
        log.warning("review: no %s (%s: %s)", what, type(error).__name__, error)
        log.debug("", exc_info=True)
