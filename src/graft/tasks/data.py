"""The data set of a run: whether it and the weights are available, and the images it gives."""

from pathlib import Path

from graft.config.schema import DataConfig, TrainConfig
from graft.data.scan import refuse_or_leave_out
from graft.data.sources import is_data_module, load_splits, locate, source_arguments
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError, NotAvailable
from graft.models.configured import recipe_of
from graft.models.published import torchvision_address
from graft.models.recipe import Recipe
from graft.system.progress import progress_bar
from graft.tasks.checks import QUICKSTART


def check_available(config: TrainConfig) -> None:
    """Stop before anything is downloaded or built when data or weights are neither here nor within reach.

    Raises:
        DataError: names what is missing, its address, the place to put it, and what trains without it.
    """
    data, weights = config.data, config.model.weights
    said = []
    missing = locate(data._target_, data_root(config), download=data.download)
    if missing is not None:
        said.append(f"{missing}\nWithout it: data=faces or data=digits (embedded), or data=folder data.root=FOLDER.")
    if missing is None or isinstance(missing, NotAvailable):  # without a network both may be out of reach
        lacking = weights_out_of_reach(recipe_of(config), weights, only_known=missing is not None)
        if lacking is not None:
            said.append(f"{lacking}\nWithout them: strategy=scratch.")
    if said:
        raise DataError("\n\n".join([*said, f"Offline, with what is embedded: {QUICKSTART}"]))


def available_data(config: TrainConfig) -> Splits:
    """The splits of the configured data set, once both it and the weights are known to be within reach.

    Raises:
        DataError: data or weights are not, see `check_available`; or images cannot be read, see `open_data`.
    """
    check_available(config)
    return open_data(config)


def weights_out_of_reach(recipe: Recipe, weights: str | None, *, only_known: bool = False) -> NotAvailable | None:
    """The error where `weights` are neither here nor within reach; torch is imported only for an address that its
    libraries alone know, and with `only_known` such an address is not looked up."""
    name = recipe.torchvision_name()
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
    """The splits of the configured data set, downloaded where needed, without images that cannot be read.

    Raises:
        DataError: there are such images and data.on_error=raise; names them.
    """
    if is_data_module(config.data._target_):
        return open_module_data(config)
    splits = divide_data(config)
    total = sum(len(part.paths or ()) for part in splits.parts().values())
    with progress_bar("checking images", total) as bar:
        return refuse_or_leave_out(splits, config.data.on_error, bar.advance)


def open_module_data(config: TrainConfig) -> Splits:
    """What is known of the data of a LightningDataModule, which is built and set up for it."""
    from graft.data.foreign import open_module

    data, usual = config.data, DataConfig()
    options = {f"data.{name}": value for name, value in vars(usual).items() if getattr(data, name) != value}
    options = {key: getattr(data, key.removeprefix("data.")) for key in options}
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


def divide_data(config: TrainConfig) -> Splits:
    """The splits of the configured data set, downloaded where needed; its files are not looked at."""
    data = config.data
    if is_data_module(data._target_):
        raise ConfigError(
            f"data._target_={data._target_}: a LightningDataModule gives batches; single images are needed here."
        )
    return load_splits(
        data._target_,
        root=data_root(config),
        seed=config.seed,
        shots=data.shots,
        val_fraction=data.val_fraction,
        fold=data.fold,
        folds=data.folds,
        download=data.download,
        arguments=source_arguments(data, DataConfig),
    )


def data_root(config: TrainConfig) -> Path | None:
    """The folder of the configured set; None for embedded ones."""
    return None if config.data.root is None else Path(config.data.root).expanduser()
