"""Training with a user's LightningDataModule: `data._target_=my_package.MyDataModule`.

Its loaders yield batches of (images, labels), or mappings with the keys `image` and `label`. uint8 images [B, 3, S, S]
are normalised by Graft as the network expects; floating-point images are passed to the network unchanged.

Training, resuming and evaluation depend on the seed alone, unless a loader keeps its worker processes between epochs
(persistent_workers=True), whose generators then continue; a note says so.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor

from graft.config.targets import TARGET, accepts, build
from graft.data.datasets import Batch
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.sampler import PADDING
from graft.data.splits import Splits
from graft.data.training_data import TrainingData
from graft.errors import ConfigError, DataError, GraftError
from graft.seeding import seed_of, seeded_everywhere

IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input")
LABEL_KEYS = ("label", "labels", "target", "targets", "y")
"""Keys of images and labels in a mapping that a loader yields; the first that exists is used."""

LOADERS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_DIVIDES = "a LightningDataModule splits its images itself"
_LOADS = "a LightningDataModule loads its images itself"
NOT_FOR_MODULES = {
    "data.shots": _DIVIDES,
    "data.fold": _DIVIDES,
    "data.folds": _DIVIDES,
    "data.val_fraction": _DIVIDES,
    "data.on_error": _LOADS,
    "data.duplicates": _DIVIDES,
    "data.draft": _LOADS,
    "data.resident_gb": _LOADS,
    "data.timeout": _LOADS,
    "augment.transforms": "a LightningDataModule augments its images itself",
    "cache.mode": "features are cached for single images, but a LightningDataModule yields batches",
}
"""Key that affects only Graft's own loaders -> reason."""


class _Numbered(Sequence[str]):
    """Names "val/0", "val/1", … for the images of a split, because a data module has none."""

    def __init__(self, part: str, length: int) -> None:
        self.part, self.length = part, length

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(self.length)[index]]
        return f"{self.part}/{range(self.length)[index]}"


@dataclass(frozen=True)
class ModuleImages(ImageSet):
    """The images of a split of a data module: their number and, if its dataset has them, their labels."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.labels):
            raise ValueError("names and labels differ in number")

    @property
    def labelled(self) -> bool:
        """Whether all labels are known."""
        return bool((self.labels != PADDING).all())

    def load(self, index: int) -> Image.Image:
        """Raise DataError, because single images are not available."""
        raise DataError(f"{self.names[index]}: a LightningDataModule yields batches, not single images.")

    def counts(self, num_classes: int) -> list[int]:
        """Number of images of each class.

        Raises:
            DataError: the labels are unknown.
        """
        if not self.labelled:
            raise DataError(
                "the images of each class cannot be counted: the dataset of the LightningDataModule has no `targets`.\n"
                "Give it that attribute, or loss.class_weights as numbers."
            )
        return super().counts(num_classes)


@dataclass(frozen=True)
class ModuleSplits(Splits):
    """What is known about the data of a LightningDataModule.

    Attributes:
        target: dotted path of its class.
        input_size: side of the images that its loaders yield, in pixels.
        uint8: whether they are uint8 and so normalised by Graft.
        arguments: of the class, as JSON.
        module: the data module.
    """

    target: str = ""
    input_size: int = 0
    uint8: bool = True
    arguments: str = ""
    module: Any = field(default=None, compare=False, repr=False)

    def part(self, name: str) -> ImageSet:
        """The validation or test part.

        Raises:
            ConfigError: "train" or "all": the training loader shuffles and augments.
        """
        if name in ("train", "all"):
            raise ConfigError(f"data.{TARGET}={self.target}: its training loader augments; choose split=val or test.")
        return self.parts()[name]

    def preprocessing(self, network: Preprocessing, changes: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing of the loaders' images: the network's normalisation at their input size.

        Args:
            network: preprocessing of the network, with `changes` applied.
            changes: data.preprocess.

        Raises:
            ConfigError: a key of data.preprocess that cannot change these images.
        """
        for key in ("resize_size", "fit", "interpolation", *(() if self.uint8 else ("mean", "std"))):
            if changes.get(key) is not None:
                raise ConfigError(
                    f"data.preprocess.{key}={changes[key]}: does not change the images of {self.target}.\n"
                    "Change them in its datasets."
                )
        if changes.get("input_size") not in (None, self.input_size):
            raise ConfigError(
                f"data.preprocess.input_size={changes['input_size']}: the images of {self.target} are "
                f"{self.input_size} x {self.input_size} pixels."
            )
        return replace(network, input_size=self.input_size, resize_size=self.input_size, fit="squash")

    def counts(self) -> dict[str, dict[str, int]]:
        """Split name → class name → number of images, for the splits whose labels are known."""
        known = {name: part for name, part in self.parts().items() if (part.labels != PADDING).all()}
        return {
            name: dict(zip(self.classes, part.counts(len(self.classes)), strict=True)) for name, part in known.items()
        }

    def relabelled(self, classes: Sequence[str]) -> "ModuleSplits":
        """These splits unchanged; their classes must be those of the network in the same order."""
        if tuple(classes) != self.classes:
            raise DataError(
                f"data.{TARGET}={self.target}: its classes are not those of the network, in the same order.\n"
                f"network  {', '.join(classes)}\ndata     {', '.join(self.classes)}"
            )
        return self

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the data module's class and arguments, the class names and the numbers of images."""
        sizes = {name: len(part) for name, part in self.parts().items()}
        described = [self.target, self.arguments, self.classes, sizes]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def build_module(target: str, arguments: Mapping[str, Any], supplied: Mapping[str, Any]) -> Any:
    """Build a data module, and prepare and set it up.

    Args:
        target: dotted path of its class.
        arguments: of the class.
        supplied: root, seed, batch_size and num_workers; it gets those for which it has parameters.

    Raises:
        ConfigError: it refuses its arguments, or overrides hooks that Graft does not call.
        DataError: it cannot prepare its data.
    """
    known = {name: value for name, value in supplied.items() if value is not None and accepts(target, name)}
    with seeded_everywhere(supplied["seed"], "data module"):
        module = build("data", {TARGET: target, **arguments}, **known)
        for hook in HOOKS:
            if getattr(type(module), hook, None) not in (
                None,
                getattr(LightningDataModule, hook),
            ) and not _is_lightnings(getattr(type(module), hook)):
                raise ConfigError(
                    f"data.{TARGET}={target}: overrides {hook}, which is not called here.\n"
                    "Do this in its datasets or in the collate_fn of its loaders."
                )
        with _named(target):
            module.prepare_data()
            module.setup("fit")
            module.setup("test")
    return module


def _is_lightnings(method: Any) -> bool:
    return str(getattr(method, "__module__", "")).startswith(("lightning.", "pytorch_lightning."))


@contextlib.contextmanager
def _named(target: str) -> Iterator[None]:
    """Context that turns errors in the user's code into a DataError that names the module."""
    try:
        yield
    except GraftError:
        raise
    except Exception as error:
        raise DataError(f"data.{TARGET}={target}: {type(error).__name__}: {error}") from error


def describe(module: Any, target: str, arguments: Mapping[str, Any]) -> ModuleSplits:
    """Describe a data module, from its attributes and its first validation batch.

    Raises:
        DataError: no loader for training or validation, loaders without a length, invalid batches, or no classes; says
            what to add.
    """
    key = f"data.{TARGET}={target}"
    sizes, notes = {}, []
    for part, method in LOADERS.items():
        loader = _loader(module, part, target)
        if loader is None and part == "test":
            notes.append(f"{target} has no test_dataloader: its validation images serve as test images too")
        elif loader is None:
            raise DataError(f"{key}: its {method} returns no loader.\nAdd one; training needs train and val loaders.")
        else:
            sizes[part] = _count(loader, key, method), _labels(loader)
    with seeded_everywhere(0, "first batch"), _named(target):
        first = to_batch(next(iter(_loader(module, "val", target))), key)
    size = first.images.shape[-1]
    if first.images.shape[1:] != (3, size, size):
        raise DataError(
            f"{key}: images of its val_dataloader are {list(first.images.shape[1:])}; [3, S, S] is expected."
        )
    images = {part: ModuleImages(_Numbered(part, count), labels if labels is not None and len(labels) == count
              else np.full(count, PADDING)) for part, (count, labels) in sizes.items()}  # fmt: skip
    if first.images.is_floating_point():
        notes.append(f"{target} yields floating-point images, which are not normalised")
    if any(getattr(_loader(module, part, target), "persistent_workers", False) for part in sizes):
        notes.append(f"{target} keeps its worker processes: a resumed run does not repeat their random numbers")
    notes.append(
        f"{target} loads and augments its images itself: the group augment is ignored except for mixup and cutmix"
    )
    return ModuleSplits(
        classes=_classes(module, key),
        train=images["train"],
        val=images["val"],
        test=images.get("test", images["val"]),
        notes=tuple(notes),
        target=target,
        input_size=size,
        uint8=not first.images.is_floating_point(),
        arguments=json.dumps(dict(arguments), sort_keys=True, default=str),
        module=module,
    )


def open_module(
    target: str, arguments: Mapping[str, Any], supplied: Mapping[str, Any], options: Mapping[str, Any]
) -> ModuleSplits:
    """Build a data module and describe its data.

    Args:
        target, arguments, supplied: as in `build_module`.
        options: keys of the configuration whose values are not the defaults, e.g. {"data.shots": 5}.

    Raises:
        ConfigError: an option that affects only Graft's own loaders, or as `build_module`.
        DataError: as `describe`.
    """
    for key, value in options.items():
        if key in NOT_FOR_MODULES:
            raise ConfigError(
                f"{key}={value} and data.{TARGET}={target} disagree: {NOT_FOR_MODULES[key]}.\nLeave {key} out."
            )
    return describe(build_module(target, arguments, supplied), target, arguments)


def _loader(module: Any, part: str, target: str) -> Any:
    """The loader of a split; None if there is none.

    Raises:
        DataError: several loaders, or an error in the user's code.
    """
    method = getattr(module, LOADERS[part], None)
    if method is None or (part != "train" and _is_lightnings(method)):
        return None
    with _named(target):
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


def _count(loader: Any, key: str, method: str) -> int:
    """Number of images in an epoch of a loader."""
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "sampler", None)
    for sized in (sampler, dataset):
        with contextlib.suppress(TypeError, AttributeError):
            return len(sized)  # type: ignore[arg-type]
    raise DataError(
        f"{key}: the loader of its {method} does not know its length.\n"
        "Use a map-style dataset, or give the loader a `dataset` with __len__."
    )


def _labels(loader: Any) -> npt.NDArray[np.int64] | None:
    """Labels of a dataset with an attribute `targets` or `labels`, or of a Subset of one; None without them."""
    dataset: Any = getattr(loader, "dataset", None)
    rows: Any = slice(None)
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        rows = np.asarray(dataset.indices)[rows]
        dataset = dataset.dataset
    for name in ("targets", "labels"):
        found = getattr(dataset, name, None)
        if found is not None:
            with contextlib.suppress(TypeError, ValueError, IndexError):
                return np.asarray(found).astype(np.int64)[rows]
    return None


def _classes(module: Any, key: str) -> tuple[str, ...]:
    for owner in (module, *(getattr(module, name, None) for name in ("train_set", "train_dataset", "data_train"))):
        names = getattr(owner, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str) and len(names) > 1:
            return tuple(map(str, names))
        index = getattr(owner, "idx_to_class", None)
        if isinstance(index, Mapping) and len(index) > 1:
            return tuple(str(index[label]) for label in sorted(index))
        count = getattr(owner, "num_classes", None)
        if isinstance(count, int) and count > 1:
            return tuple(map(str, range(count)))
    raise DataError(
        f"{key}: does not say which classes there are.\n"
        'Give it an attribute `classes` (e.g. ["ants", "bees"]), `idx_to_class` or `num_classes`.'
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
            "Expected: [B, 3, S, S] and class indices [B]."
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
        return batches - (size > 1 and batches > 1 and _count(self.loader, self.key, "train_dataloader") % size == 1)

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
            with seeded_everywhere(*purpose, number), _named(self.key.partition("=")[2]):
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


class ForeignDataModule(TrainingData):
    """Wraps a user's LightningDataModule, so that it yields batches as Graft's own loaders do.

    Args:
        module: built by `build_module`.
        splits: from `describe`.
        preprocessing: of the network; normalises uint8 images.
        batch_size: data.batch_size, for messages.
        seed: of the run.
        avoid_single: drop a last training batch of one image.
    """

    splits: ModuleSplits
    pictures = False
    """A data module yields batches, not single images."""

    def __init__(
        self,
        module: Any,
        splits: ModuleSplits,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        seed: int,
        avoid_single: bool = False,
    ) -> None:
        super().__init__()
        if preprocessing.input_size != splits.input_size:
            raise ConfigError(
                f"views: images of {preprocessing.input_size} pixels are needed, but {splits.target} yields "
                f"{splits.input_size}.\nRemove the views with corners."
            )
        self.module, self.splits, self.preprocessing = module, splits, preprocessing
        self.batch_size, self.seed, self.avoid_single = batch_size, seed, avoid_single
        self.unreadable = None
        self._loaders: dict[str, ModuleLoader] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Training batches per epoch."""
        return len(self._loader("train"))

    def train_dataloader(self) -> ModuleLoader:
        """The training loader of the module, at the Trainer's current epoch."""
        loader = self._loader("train")
        if self.trainer is not None:
            loader.set_epoch(self.trainer.current_epoch)
        return loader

    def val_dataloader(self) -> ModuleLoader:
        """The validation loader of the module."""
        return self._loader("val")

    def test_dataloader(self) -> ModuleLoader:
        """The test loader of the module, or its validation loader if there is none."""
        return self._loader("test")

    def eval_loader(self, part: str) -> ModuleLoader:
        """The loader of "val" or "test".

        Raises:
            ConfigError: "train", whose loader shuffles and augments.
        """
        if part == "train":
            raise ConfigError(
                f"data.{TARGET}={self.splits.target}: its training loader augments; evaluate split=val or split=test."
            )
        return self._loader(part)

    def sample(self, count: int) -> Tensor:
        """The first `count` training images, or all if there are fewer: [N, 3, S, S]."""
        batches: list[Tensor] = []
        for batch in self._loader("train"):
            batches.append(batch.images)
            if sum(map(len, batches)) >= count:
                break
        return torch.cat(batches)[:count]

    def picture(self, part: str, index: int) -> npt.NDArray[np.uint8]:
        """Raise DataError, because single images are not available."""
        raise DataError(f"{part}/{index}: a LightningDataModule yields batches, not single images.")

    def _loader(self, part: str) -> ModuleLoader:
        if part not in self._loaders:
            target = self.splits.target
            loader = _loader(self.module, part, target)
            if loader is None:
                return self._loader("val")
            self._loaders[part] = ModuleLoader(
                loader,
                f"data.{TARGET}={target}",
                len(self.splits.classes),
                self.seed,
                in_order=part != "train",
                avoid_single=self.avoid_single and part == "train",
            )
        return self._loaders[part]

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped module."""
        return dict(self.module.state_dict()) if hasattr(self.module, "state_dict") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the wrapped module."""
        if hasattr(self.module, "load_state_dict"):
            self.module.load_state_dict(state_dict)
