"""Builds a LightningDataModule and finds out what is in it."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule

from graft.config.targets import TARGET, accepts, build
from graft.data.foreign.loader import LOADERS, count_images, is_lightnings, loader_of, naming_errors, to_batch
from graft.data.foreign.splits import ModuleImages, ModuleSplits, NumberedNames
from graft.data.sampler import PADDING
from graft.errors import ConfigError, DataError
from graft.seeding import seeded_everywhere

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
    "data.sampler": _LOADS,
    **dict.fromkeys(("data.channels", "data.bits", "data.bands", "data.max_value"), _LOADS),
    "augment.transforms": "a LightningDataModule augments its images itself",
    "cache.mode": "features are cached for single images, but a LightningDataModule yields batches",
}
"""Key that affects only Graft's own loaders -> reason."""


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
            ) and not is_lightnings(getattr(type(module), hook)):
                raise ConfigError(
                    f"data.{TARGET}={target}: overrides {hook}, which is not called here.\n"
                    "Do this in its datasets or in the collate_fn of its loaders."
                )
        with naming_errors(target):
            module.prepare_data()
            module.setup("fit")
            module.setup("test")
    return module


def describe(module: Any, target: str, arguments: Mapping[str, Any]) -> ModuleSplits:
    """Describe a data module, from its attributes and its first validation batch.

    Raises:
        DataError: no loader for training or validation, loaders without a length, invalid batches, or no classes; says
            what to add.
    """
    key = f"data.{TARGET}={target}"
    sizes, notes = {}, []
    for part, method in LOADERS.items():
        loader = loader_of(module, part, target)
        if loader is None and part == "test":
            notes.append(f"{target} has no test_dataloader: its validation images serve as test images too")
        elif loader is None:
            raise DataError(f"{key}: its {method} returns no loader.\nAdd one; training needs train and val loaders.")
        else:
            sizes[part] = count_images(loader, key, method), _labels(loader)
    with seeded_everywhere(0, "first batch"), naming_errors(target):
        first = to_batch(next(iter(loader_of(module, "val", target))), key)
    size = first.images.shape[-1]
    if first.images.shape[1:] != (3, size, size):
        raise DataError(
            f"{key}: images of its val_dataloader are {list(first.images.shape[1:])}; [3, H, W] is expected."
        )
    images = {part: ModuleImages(NumberedNames(part, count), labels if labels is not None and len(labels) == count
              else np.full(count, PADDING)) for part, (count, labels) in sizes.items()}  # fmt: skip
    if first.images.is_floating_point():
        notes.append(f"{target} yields floating-point images, which are not normalised")
    if any(getattr(loader_of(module, part, target), "persistent_workers", False) for part in sizes):
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
