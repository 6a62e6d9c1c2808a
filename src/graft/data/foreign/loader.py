"""The loaders of a LightningDataModule, and the conversion of their batches."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from graft.config.targets import TARGET
from graft.data.datasets import Batch
from graft.data.sampler import PADDING
from graft.errors import DataError, GraftError
from graft.seeding import seed_of, seeded_everywhere

IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
"""Keys of images and labels in a mapping that a loader yields; the first that exists is used."""

LOADERS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}


def loader_of(module: Any, part: str, target: str) -> Any:
    """The loader of a split; None if there is none.

    Raises:
        DataError: several loaders, or an error in the user's code.
    """
    method = getattr(module, LOADERS[part], None)
    if method is None or (part != "train" and is_lightnings(method)):
        return None
    with naming_errors(target):
        try:
            loader = method()
        except NotImplementedError:
            return None
    if isinstance(loader, list | tuple | Mapping):
        if not loader:
            return None
        if len(loader) != 1:
            raise DataError(f"data.{TARGET}={target}: {LOADERS[part]} returns {len(loader)} loaders; one is expected.")
        loader = next(iter(loader.values())) if isinstance(loader, Mapping) else loader[0]
    return loader


def is_lightnings(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).startswith(("lightning.", "pytorch_lightning."))


@contextlib.contextmanager
def naming_errors(target: str) -> Iterator[None]:
    """Context that turns errors in the user's code into a DataError that names the module."""
    try:
        yield
    except GraftError:
        raise
    except Exception as error:
        raise DataError(f"data.{TARGET}={target}: {type(error).__name__}: {error}") from error


def count_images(loader: Any, key: str, method: str) -> int:
    """Number of images in an epoch of a loader."""
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
    for sized in (sampler, dataset):
        with contextlib.suppress(TypeError, AttributeError):
            return len(sized)  # type: ignore[arg-type]
    raise DataError(
        f"{key}: the loader of its {method} does not know its length.\n"
        "Use a map-style dataset, or give the loader a `dataset` with __len__."
    )


def to_batch(loaded: Any, key: str, indices: Tensor | None = None, classes: int | None = None) -> Batch:
    """Convert a batch of a data module's loader to a `Batch`.

    Args:
        loaded: (images, labels, …) or a mapping.
        key: of the configuration, for messages.
        indices: of its images; None: unknown (PADDING).
        classes: number of classes, for a check of the labels.

    Raises:
        DataError: another type, wrong shapes, or a label out of range.
    """
    images = labels = None
    if isinstance(loaded, Mapping):
        images, labels = (
            next((loaded[name] for name in names if name in loaded), None) for names in (IMAGE_KEYS, LABEL_KEYS)
        )
    elif isinstance(loaded, list | tuple) and len(loaded) >= 2:
        images, labels = loaded[:2]
    if not isinstance(images, Tensor) or labels is None:
        raise DataError(
            f"{key}: a loader yielded a {type(loaded).__name__}. Expected: tensors (images, labels), or a mapping "
            "with `image` and `label`."
        )
    labels = torch.as_tensor(labels)
    if labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(images) or images.dim() != 4:
        raise DataError(
            f"{key}: a loader yielded images {list(images.shape)} and labels {list(labels.shape)} ({labels.dtype}). "
            "Expected: [B, 3, H, W] and class indices [B]."
        )
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise DataError(f"{key}: a loader yielded images of {images.dtype}. Expected: uint8, or floating-point.")
    labels = labels.long()
    if classes is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"{key}: a loader yielded labels {int(labels.min())} to {int(labels.max())} for {classes} classes."
        )
    return Batch(images, labels, torch.full_like(labels, PADDING) if indices is None else indices)


class ModuleLoader:
    """A data module's loader, yielding `Batch`es; its randomness depends on (seed, epoch, batch) alone.

    Resuming within an epoch loads and drops the earlier batches, so that the others are the same. Lightning calls
    `sampler.set_epoch` and stores `state_dict()` in checkpoints.

    Args:
        loader: of the data module.
        key: of the configuration, for messages.
        classes: number of classes.
        seed: of the run.
        in_order: number the images of an epoch in `Batch.indices`, for evaluation.
        avoid_single: drop a last training batch of one image, on which BatchNorm cannot train.
    """

    def __init__(
        self, loader: Any, key: str, classes: int, seed: int, *, in_order: bool, avoid_single: bool = False
    ) -> None:
        self.loader, self.key, self.classes, self.seed = loader, key, classes, seed
        self.in_order, self.avoid_single = in_order, avoid_single
        self.epoch = self._start = 0
        self._current, self._yielded = 0, 0
        self.sampler, self.batch_sampler = self, None  # Lightning reads both

    def __len__(self) -> int:
        batches, size = len(self.loader), getattr(self.loader, "batch_size", None)
        if not self.avoid_single or not size or getattr(self.loader, "drop_last", False):
            return batches
        return batches - (
            size > 1 and batches > 1 and count_images(self.loader, self.key, "train_dataloader") % size == 1
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        if epoch != self.epoch:
            self.epoch, self._start = epoch, 0

    def __iter__(self) -> Iterator[Batch]:
        epoch, start, self._start = self.epoch, self._start, 0
        self._current, self._yielded = epoch, start
        purpose = (self.seed, "data module", epoch)
        if (generator := getattr(self.loader, "generator", None)) is not None:
            generator.manual_seed(seed_of(*purpose))
        if hasattr(getattr(self.loader, "sampler", None), "set_epoch"):
            self.loader.sampler.set_epoch(epoch)
        with seeded_everywhere(*purpose):
            batches = iter(self.loader)
        position = 0
        for number in range(len(self)):
            with seeded_everywhere(*purpose, number), naming_errors(self.key.partition("=")[2]):
                loaded = next(batches, None)
            if loaded is None:
                return
            count = len(to_batch(loaded, self.key).labels)
            indices = torch.arange(position, position + count) if self.in_order else None
            position += count
            if number < start:
                continue
            self._yielded = number + 1
            yield to_batch(loaded, self.key, indices, self.classes)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and the number of its batches yielded so far."""
        return {"epoch": self._current, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume the next iteration after the batches of `state`; after a complete epoch, with the next epoch."""
        done = state["batches"] >= len(self)
        self.epoch = state["epoch"] + done
        self._start = 0 if done else state["batches"]
        self._current, self._yielded = state["epoch"], state["batches"]
