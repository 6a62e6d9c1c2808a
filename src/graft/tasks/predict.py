"""`graft predict`: classes and probabilities of any number of images."""

import contextlib
import itertools
import os
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig
from PIL import Image

from graft.config.commands import PredictConfig
from graft.config.registration import plain, typed
from graft.data.display import as_picture
from graft.data.image_format import RGB, ImageFormat
from graft.data.reading import EXTENSIONS, load_file
from graft.data.stream import Found, InMemory, find_images, read_ahead
from graft.errors import DataError
from graft.learning.checkpoints import checkpoint_files
from graft.models.class_names import class_names
from graft.models.configured import recipe_of
from graft.review.predictions import Prediction, format_of, prediction_table, writing
from graft.system import downloads
from graft.system.cpu import available_cores
from graft.system.escaping import say
from graft.system.files import require_writable
from graft.system.folder_lock import output_folder
from graft.system.progress import Bar, progress_bar
from graft.system.startup import garbage_collection_paused
from graft.system.terminal import PlainConsole
from graft.tasks.command_checks import check_predict, sources_of, texts_of
from graft.tasks.data import unavailable_weights

if TYPE_CHECKING:
    from torch import Tensor

    from graft.data.transforms import Picture as ToTransform
    from graft.learning.restore import Restored

MOST_THREADS = 16

ANY_ENDING = (".npy",)
"""Endings that are images for some networks only; which, is known once the network is read."""

Picture = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]
Images = Picture | Iterable[Picture]
"""What `Predictor.predict` takes."""

Outcome = tuple[Found | InMemory, Prediction | DataError]


def main(config: DictConfig) -> None:
    """Run `graft predict`.

    Args:
        config: a PredictConfig, composed by Hydra.

    Raises:
        DataError: there is no image; or, after all others are predicted, some could not be read.
    """
    cfg = typed(config, PredictConfig)
    check_predict(cfg)
    sources = sources_of(cfg)
    require_images(sources, ANY_ENDING)
    output = None if cfg.output is None else Path(cfg.output).expanduser()
    if output is not None:
        format_of(output)
        require_writable(output.parent, "output")
    if cfg.show:
        require_writable(Path(cfg.folder), "folder")
    networks = restore(cfg)
    predictor = Predictor(networks, cfg)
    image_format = predictor.image_format
    require_images(sources, image_format.extensions)
    for restored in networks:
        say(f"by {restored.source}")
        for note in restored.notes:
            say(f"note  {note}")
    if len(networks) > 1:
        say(f"the mean of the probabilities of these {len(networks)} networks")
    copies = output_folder(config) if cfg.show else None
    shown: list[Prediction] = []
    predicted = unreadable = 0
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(writing(output)) if output is not None else None
        bar = stack.enter_context(progress_bar("images"))
        count_in_background(sources, bar, image_format.extensions)
        found = find_images(sources, image_format.extensions)
        for picture, outcome in stack.enter_context(contextlib.closing(predictor.outcomes(found))):
            bar.advance()
            if isinstance(outcome, DataError):
                unreadable += 1
                bar.print_line(f"skipped  {str(outcome).splitlines()[0]}")
                continue
            predicted += 1
            if len(shown) < cfg.rows:
                shown.append(outcome)
            if write is not None:
                write(outcome)
            if copies is not None:
                assert isinstance(picture, Found)
                annotate(picture, outcome, copies, image_format)
    print_table(shown)
    summary = [f"and {predicted - len(shown):,} more"] if predicted > len(shown) else []
    summary += [f"all {predicted:,} in {output}"] if output is not None else []
    summary += [f"annotated copies in {copies}"] if copies is not None else []
    if summary:
        say(" · ".join(summary))
    if unreadable:
        raise DataError(
            f"{unreadable:,} of {predicted + unreadable:,} images could not be read and were skipped; "
            "they are named above."
        )


def require_images(sources: Sequence[str], more: tuple[str, ...] = ()) -> None:
    """Raise DataError unless the sources hold at least one image; `more` are endings besides EXTENSIONS."""
    if next(find_images(sources, more), None) is None:
        endings = ", ".join((*EXTENSIONS, *more))
        raise DataError(f"source={', '.join(sources)}: no picture found (looked for {endings}, at any depth).")


def restore(cfg: PredictConfig) -> "list[Restored]":
    """The networks that predict: of one or several checkpoints, or a pretrained one with the classes of its weights.

    Raises:
        DataError: the weights are not on this machine and cannot be downloaded; names the path to put them at.
    """
    if cfg.checkpoint is not None:
        checkpoints = checkpoint_files(texts_of(cfg.checkpoint))
        with garbage_collection_paused():  # torch is imported only once there is something to restore
            from graft.learning.restore import from_file

        return [from_file(file, cfg.trust, cfg.model).prepared(plain(cfg.preprocess)) for file in checkpoints]
    downloads.configure(cfg.download)
    recipe, weights = recipe_of(cfg), cfg.model.weights
    unavailable = unavailable_weights(recipe, weights)
    if unavailable is not None:
        raise DataError(
            f"{unavailable}\nOr give a file: model.weights=FILE. "
            "Without them: checkpoint=RUN_FOLDER, for your own network."
        )
    with garbage_collection_paused():
        from graft.learning.restore import from_pretrained

    return [from_pretrained(recipe, weights, class_names(cfg.model.classes)).prepared(plain(cfg.preprocess))]


class Predictor:
    """A network, or an ensemble of several, that stays in memory for any number of predictions.

    Args:
        networks: one or several with the same classes, whose probabilities are averaged.
        config: a PredictConfig, of which topk, batch_size, num_workers and trainer are used.

    Raises:
        ConfigError: the networks have different classes; names them.
    """

    def __init__(self, networks: "Sequence[Restored]", config: PredictConfig) -> None:
        from graft.data.transforms import eval_transform
        from graft.learning.ensemble import Ensemble
        from graft.learning.inference import Inference
        from graft.system.device import inference_device

        members = []
        for restored in networks:
            device, channels_last = inference_device(restored.config.get("trainer", {}), plain(config.trainer))
            members.append(Inference(restored, device, channels_last=channels_last))
        self._ensemble = Ensemble(members)
        self.classes = self._ensemble.classes
        self.source = ", ".join(restored.source for restored in networks)
        self.topk, self.batch_size = config.topk, config.batch_size
        self.image_format = self._ensemble.preparations[0].image_format
        self._transforms = [eval_transform(each) for each in self._ensemble.preparations]
        cores = min(available_cores(), MOST_THREADS)
        self._workers = cores if config.num_workers == "auto" else max(1, int(config.num_workers))

    def _prepared(self, image: "ToTransform") -> "list[Tensor]":
        """An image in each preprocessing of the networks, [C, H, W]."""
        return [transform(image) for transform in self._transforms]

    def predict(self, images: Images, topk: int | None = None) -> list[Prediction]:
        """The most probable classes of each image, the most probable first; with several labels per image
        `LabelPrediction`s, whose `labels` are the predicted ones.

        Args:
            images: one or several of: a path (a file, a folder at any depth, a pattern), a PIL image, a uint8 array
                [H, W, 3] (RGB) or [H, W] (grey), or of N images [N, H, W, 3]; for a network of another format an array
                [H, W, bands] or [N, H, W, bands] of any type that a file could have.
            topk: number of classes of each image; None: as configured.

        Returns:
            One per image, in order. An image without a file is called "image 0", "image 1", … by its position.

        Raises:
            DataError: no image, one that cannot be read, or an array of another type or shape.
        """
        inputs = list(_inputs(images, self.image_format))
        if paths := [each for each in inputs if isinstance(each, str)]:
            require_images(paths, self.image_format.extensions)
        predictions = []
        for _, outcome in self.outcomes(_found(inputs, self.image_format.extensions), topk):
            if isinstance(outcome, DataError):
                raise outcome
            predictions.append(outcome)
        return predictions

    def outcomes(self, pictures: Iterable[Found | InMemory], topk: int | None = None) -> Generator[Outcome]:
        """Each picture with its prediction, or with the reason why it cannot be read, in order."""
        import torch

        from graft.review.ranking import ranked

        count = min(self.topk if topk is None else topk, len(self.classes))
        ahead = 2 * self.batch_size + self._workers
        read = read_ahead(pictures, self._prepared, workers=self._workers, ahead=ahead, image_format=self.image_format)
        with contextlib.closing(read), self._ensemble.many():
            while batch := list(itertools.islice(read, self.batch_size)):
                names = [str(picture) for picture, pixels in batch if not isinstance(pixels, DataError)]
                images = [pixels for _, pixels in batch if not isinstance(pixels, DataError)]
                predictions: Iterator[Prediction] = iter(())
                if images:
                    batches = [torch.stack(batch) for batch in zip(*images, strict=True)]
                    predictions = ranked(self._ensemble, names, self._ensemble(batches), count)
                for picture, pixels in batch:
                    yield picture, pixels if isinstance(pixels, DataError) else next(predictions)


def _inputs(images: Any, image_format: ImageFormat) -> Iterator[str | InMemory]:
    """The paths and pictures of what `Predictor.predict` takes; files that Pillow has opened keep their names."""
    single = (
        not isinstance(images, Iterable)
        or isinstance(images, str | os.PathLike | Image.Image)
        or (isinstance(images, np.ndarray) and images.ndim < 4)
    )
    for position, each in enumerate([images] if single else images):
        if isinstance(each, str | os.PathLike):
            yield os.fspath(each)
        elif isinstance(each, Image.Image):
            yield InMemory(each, str(getattr(each, "filename", "") or f"image {position}"))
        else:
            yield InMemory(_from_array(each, position, image_format), f"image {position}")


def _found(inputs: Iterable[str | InMemory], more: tuple[str, ...]) -> Iterator[Found | InMemory]:
    """The pictures of each path, and those in memory."""
    for each in inputs:
        if isinstance(each, str):
            yield from find_images([each], more)
        else:
            yield each


def _from_array(array: Any, position: int, image_format: ImageFormat) -> Image.Image | npt.NDArray[Any]:
    """An array as it is read: for RGB a PIL image from uint8 [H, W, 3] or [H, W], else [H, W, bands]; raises DataError
    for anything else."""
    if not image_format.is_rgb and isinstance(array, np.ndarray) and array.ndim in (2, 3) and array.size:
        return array if array.ndim == 3 else array[..., None]
    fits = isinstance(array, np.ndarray) and array.dtype == np.uint8 and array.size
    if not fits or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        shape = f" of {array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else ""
        raise DataError(
            f"image {position}: is a {type(array).__name__}{shape}.\n"
            "Give a path, a PIL image, or a uint8 array [H, W, 3] (RGB) or [H, W] (grey)."
        )
    return Image.fromarray(array)


def count_in_background(sources: Sequence[str], bar: Bar, more: tuple[str, ...] = ()) -> None:
    """Count the images in a background thread and give `bar` the total once it is known."""

    def count() -> None:
        with contextlib.suppress(DataError):
            bar.set_total(sum(1 for _ in find_images(sources, more)))

    if bar.visible:
        threading.Thread(target=count, daemon=True).start()


def annotate(picture: Found, prediction: Prediction, folder: Path, image_format: ImageFormat = RGB) -> None:
    """Save a copy of the image with its prediction below it under the same path in `folder`, overwriting nothing."""
    from graft.review.annotate import annotated

    file = (folder / picture.relative).with_suffix(".jpg")
    for number in itertools.count(2):
        if not file.exists():
            break
        file = (folder / picture.relative).with_suffix(f".{number}.jpg")
    file.parent.mkdir(parents=True, exist_ok=True)
    annotated(as_picture(load_file(picture.path, image_format)), prediction).save(file, quality=90)


def print_table(shown: Sequence[Prediction]) -> None:
    """Print the table of the first predictions."""
    if shown:
        PlainConsole().print(prediction_table(shown))
