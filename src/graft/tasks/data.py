"""The data set of a run: whether it and the weights are available, and the images it gives."""

import hashlib
import os
from pathlib import Path
from typing import Any

from graft.config import COPIES
from graft.config.commands import InspectConfig, PackConfig
from graft.config.schema import DataConfig, TrainConfig
from graft.data.image_format import ImageFormat
from graft.data.images import ImageSet
from graft.data.loading import load_published, load_splits, locate
from graft.data.scan import exclude_unreadable
from graft.data.sources import is_data_module, source_arguments
from graft.data.sources.base import Source
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError, GraftError, NotAvailable
from graft.inspection.copies import with_groups_of_copies, with_note_on_copies, without_copies
from graft.models.configured import recipe_of
from graft.models.published import torchvision_address
from graft.models.recipe import Recipe
from graft.models.registry import torchvision_name
from graft.system.files import is_within
from graft.system.progress import progress_bar
from graft.tasks.checks import QUICKSTART


def check_available(config: TrainConfig) -> None:
    """Refuse a run whose data or weights are neither on this machine nor can be downloaded, before long work.

    Raises:
        DataError: names what is missing, its address, where to put it, and what trains without it.
    """
    weights = config.model.weights
    errors = []
    missing = missing_data(config)
    if missing is not None:
        errors.append(f"{missing}\nWithout it: data=faces or data=digits (embedded), or data=folder data.root=FOLDER.")
    if missing is None or isinstance(missing, NotAvailable):  # offline, both may be unavailable
        unavailable = unavailable_weights(recipe_of(config), weights, only_known=missing is not None)
        if unavailable is not None:
            errors.append(f"{unavailable}\nWithout them: strategy=scratch.")
    if errors:
        raise DataError("\n\n".join([*errors, f"Offline, with what is embedded: {QUICKSTART}"]))


def missing_data(config: TrainConfig | InspectConfig | PackConfig, download: bool | None = None) -> GraftError | None:
    """The error if the configured data set is neither on this machine nor can be downloaded; None if it is available.

    Args:
        config: of the command.
        download: None: as configured.
    """
    data = config.data
    return locate(
        data._target_,
        data_root(config),
        data.download if download is None else download,
        source_arguments(data, DataConfig),
    )


def available_data(config: TrainConfig) -> Splits:
    """The splits of the configured data set, once both it and the weights are known to be within reach.

    Raises:
        DataError: data or weights are not, see `check_available`; or images cannot be read, see `open_data`.
    """
    check_available(config)
    return open_data(config)


def unavailable_weights(recipe: Recipe, weights: str | None, *, only_known: bool = False) -> NotAvailable | None:
    """The error if `weights` are neither on this machine nor can be downloaded; None if they are available.

    Args:
        recipe: the network.
        weights: of `model.weights`.
        only_known: skip addresses that only torchvision or timm knows, which would need an import of torch.
    """
    name = torchvision_name(recipe)
    address = None if name is None or weights is None else torchvision_address(name, weights)
    if weights is None or (address is None and only_known):
        return None
    if address is None:
        from graft.models.weights import locate_weights

        return locate_weights(recipe, weights)
    try:
        if address.local_copy() is None:
            address.require_reachable(f"ImageNet weights of {name}")
    except NotAvailable as error:
        return error
    return None


def open_data(config: TrainConfig) -> Splits:
    """The splits of the configured data set, downloaded if needed, without unreadable images.

    Raises:
        DataError: there are unreadable images and data.on_error=raise; names them.
    """
    if is_data_module(config.data._target_):
        return open_module_data(config)
    splits = divide_data(config)
    total = sum(len(part.paths or ()) for part in splits.parts().values())
    with progress_bar("checking images", total) as bar:
        splits = exclude_unreadable(splits, config.data.on_error, bar.advance)
    if config.data.duplicates == "drop":
        with progress_bar("looking for copies", len(splits.part("all"))) as bar:
            return without_copies(splits, copies_file(config), bar.advance)
    return with_note_on_copies(splits, copies_file(config)) if config.data.duplicates == "keep" else splits


def open_module_data(config: TrainConfig) -> Splits:
    """The splits of a LightningDataModule, which is built and set up.

    Raises:
        ConfigError: an option that a data module cannot follow.
    """
    from graft.data.foreign import open_module

    data, defaults = config.data, DataConfig()
    changed = [name for name, default in vars(defaults).items() if getattr(data, name) != default]
    options: dict[str, Any] = {f"data.{name}": getattr(data, name) for name in changed}
    if config.augment.transforms:
        options["augment.transforms"] = config.augment.transforms
    if config.cache.mode == "features":
        options["cache.mode"] = config.cache.mode
    if data.batch_size == "auto":
        raise ConfigError(
            f"data.batch_size=auto and data._target_={data._target_} disagree: a LightningDataModule makes its batches."
            "\nGive a number."
        )
    supplied = {
        "root": data_root(config), "seed": config.seed, "batch_size": data.batch_size,
        "num_workers": 0 if data.num_workers == "auto" else int(data.num_workers),
    }  # fmt: skip
    return open_module(data._target_, source_arguments(data, DataConfig), supplied, options)


def divide_data(config: TrainConfig | InspectConfig) -> Splits:
    """The splits of the configured data set, downloaded if needed; its files are not opened."""
    data = config.data
    if is_data_module(data._target_):
        raise ConfigError(
            f"data._target_={data._target_}: a LightningDataModule gives batches; single images are needed here."
        )

    def grouped(source: Source) -> Source:
        with progress_bar("looking for copies", sum(map(len, source.parts()))) as bar:
            return with_groups_of_copies(source, copies_file(config), bar.advance)

    return load_splits(
        data._target_,
        root=data_root(config),
        seed=config.seed,
        shots=data.shots,
        val_fraction=data.val_fraction,
        fold=data.fold,
        folds=data.folds,
        group_pattern=data.group_pattern,
        download=data.download,
        arguments=source_arguments(data, DataConfig),
        image_format=ImageFormat.of(data),
        prepare=grouped if data.duplicates == "group" else lambda source: source,
    )


def groups_of(config: TrainConfig, images: ImageSet) -> list[str] | None:
    """The group of each image of the configured data set, e.g. the patient; None if it has no groups."""
    published, _ = load_published(
        config.data._target_,
        root=data_root(config),
        seed=config.seed,
        group_pattern=config.data.group_pattern,
        download=False,
        arguments=source_arguments(config.data, DataConfig),
    )
    if config.data.duplicates == "group":
        published = with_groups_of_copies(published, copies_file(config))
    return None if published.group_of is None else [published.group_of(name) for name in images.names]


def copies_file(config: TrainConfig | InspectConfig) -> Path | None:
    """The file with descriptions of the images of the configured data set; None if it would be in the data set."""
    cache, root = Path(config.paths.cache).expanduser(), data_root(config)
    if root is not None and is_within(cache, root):
        return None
    name = config.data._target_ if root is None else os.path.abspath(root)
    image_format = ImageFormat.of(config.data)
    name += "" if image_format.is_rgb else f" {image_format}"
    return cache / COPIES / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.npy"


def data_root(config: TrainConfig | InspectConfig | PackConfig) -> Path | None:
    """The folder of the configured data set; None for an embedded one."""
    return None if config.data.root is None else Path(config.data.root).expanduser()
