"""`graft inspect`: what is wrong with a data set, before an hour of GPU is spent on it."""

import io
import json
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from graft.config.commands import InspectConfig
from graft.config.fields import check_ranges
from graft.config.registration import plain as plain_config
from graft.config.registration import typed
from graft.config.schema import DataConfig
from graft.data.augment import Augment
from graft.data.image_format import ImageFormat
from graft.data.labels import has_class
from graft.data.loading import checked_group_pattern, undivided
from graft.data.sources import check_source, checked_name, source_arguments
from graft.errors import ConfigError, DataError
from graft.inspection.contact_sheets import contact_sheet
from graft.inspection.copies import remember
from graft.inspection.dataset import Inspection
from graft.inspection.examine import Collection
from graft.inspection.findings import Finding, findings
from graft.inspection.report import plain, tables
from graft.learning.checkpoints import checkpoint_file
from graft.models.configured import preprocessing_of, recipe_of
from graft.system import downloads
from graft.system.escaping import say
from graft.system.files import require_writable, safe_name, write_atomically
from graft.system.folder_lock import output_folder
from graft.system.progress import progress_bar
from graft.system.startup import garbage_collection_paused
from graft.system.terminal import PlainConsole
from graft.tasks.checks import check_augment
from graft.tasks.command_checks import overridden_keys
from graft.tasks.data import copies_file, data_root, divide_data, missing_data
from graft.tasks.locations import check_locations


def main(config: DictConfig) -> None:
    """Run `graft inspect`: examine a data set and show what was found; or show the layers of a network.

    Args:
        config: an InspectConfig, composed by Hydra.

    Raises:
        DataError: a finding spoils training; raised after everything is printed and written.
    """
    from hydra.core.hydra_config import HydraConfig

    cfg = typed(config, InspectConfig)
    overrides = overridden_keys(HydraConfig.get().overrides.task) if HydraConfig.initialized() else frozenset()
    if is_network(cfg, overrides):
        show_network(cfg)
        return
    check(cfg)
    downloads.configure(cfg.download)
    preprocessing = preprocessing_of(cfg)
    collection = open_collection(cfg)
    with progress_bar("images", len(collection.images)) as bar:
        inspection = Inspection.of(collection, preprocessing, near=cfg.near, done=bar.advance)
    remember(collection.images, inspection.images, copies_file(cfg))
    found = findings(inspection)
    show(cfg, inspection, found)
    sheets = write_sheets(inspection, output_folder(config), cfg.sheets, cfg.per_sheet) if cfg.sheets else {}
    if any(key.partition(".")[0] == "augment" for key in overrides):
        write_preview(cfg, collection, output_folder(config))
    if cfg.output is not None:
        text = json.dumps({"data": cfg.data.name} | plain(inspection, found, sheets), indent=2, ensure_ascii=False)
        write_atomically(Path(cfg.output).expanduser(), (text + "\n").encode(errors="backslashreplace"))
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        listed = "\n".join(f"{finding.kind}: {finding.message}" for finding in errors)
        raise DataError(f"{title(cfg)}: training would be spoiled.\n{listed}")


def is_network(config: InspectConfig, overrides: AbstractSet[str]) -> bool:
    """Whether a network is inspected: a checkpoint is given, or a model and no data set.

    Raises:
        ConfigError: a checkpoint together with a data set or a model.
    """
    groups = {key.partition(".")[0] for key in overrides}
    if config.checkpoint is None:
        return "model" in groups and not groups & {"data", "augment", "output"}
    if others := sorted(groups & {"data", "model", "augment"}):
        raise ConfigError(
            f"checkpoint={config.checkpoint} and {others[0]} disagree: a checkpoint's network is inspected alone.\n"
            "To inspect data, leave checkpoint out."
        )
    return True


def show_network(config: InspectConfig) -> None:
    """Print the layers of the network."""
    check_ranges(config, InspectConfig)
    checkpoint = None if config.checkpoint is None else checkpoint_file(config.checkpoint)
    if checkpoint is None:
        recipe_of(config)  # refuses an unknown name before torch is imported
    with garbage_collection_paused():
        from graft.tasks.inspect_network import network_table

    PlainConsole().print(network_table(config, checkpoint))


def write_preview(config: InspectConfig, collection: Collection, folder: Path) -> None:
    """Write augmented.png: some training images as training sees them in five epochs."""
    from graft.review.evaluated_images import augmented

    images = collection.images
    train = images.select(np.flatnonzero(collection.part == collection.parts.index("train")).tolist())
    picture = augmented(
        train, collection.classes, preprocessing_of(config), Augment.of(plain_config(config.augment)), config.seed
    )
    png = io.BytesIO()
    picture.save(png, "PNG")
    write_atomically(folder / "augmented.png", png.getvalue())
    say(f"what training sees  {folder / 'augmented.png'}")


def check(config: InspectConfig) -> None:
    """Refuse mistakes in an InspectConfig, before anything is read or written.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, InspectConfig)
    config.data.name = checked_name(config.data.name, config.data._target_)
    check_source(config.data._target_, source_arguments(config.data, DataConfig))
    checked_group_pattern(config.data.group_pattern)
    check_augment(config)
    if config.output is not None and Path(config.output).suffix.lower() != ".json":
        raise ConfigError(f"output={config.output}: give a name that ends in .json.")
    require_writable(Path(config.folder), "folder")
    if config.output is not None:
        require_writable(Path(config.output).parent, "output")
    check_locations(config, {"output": config.output, "folder": config.folder})


def open_collection(config: InspectConfig) -> Collection:
    """The configured set, split as for training; unsplit where that is impossible.

    Raises:
        NotAvailable, DataError: it is neither on this machine nor downloadable, or it has no images.
    """
    missing = missing_data(config)
    if missing is not None:
        raise missing
    try:
        return Collection.of(divide_data(config))
    except DataError as error:
        root, arguments = data_root(config), source_arguments(config.data, DataConfig)
        found = undivided(config.data._target_, root, config.seed, arguments, ImageFormat.of(config.data))
        if found is None:
            raise
        classes, parts, notes, unused = found
        return Collection.joined(classes, parts, notes, root, unused, undivided=str(error))


def show(config: InspectConfig, inspection: Inspection, found: list[Finding]) -> None:
    """Print the report."""
    PlainConsole().print(tables(inspection, found, title(config), config.rows))


def title(config: InspectConfig) -> str:
    """Name and folder of the set."""
    return f"data={config.data.name}" + (f" data.root={config.data.root}" if config.data.root else "")


def write_sheets(inspection: Inspection, folder: Path, classes: int, pictures: int) -> dict[str, Path]:
    """A contact sheet of each of the first `classes` classes into `folder`; returns class name → file."""
    images, written = inspection.collection.images, {}
    readable = np.array(sorted(inspection.readable), dtype=np.int64)
    names = list(enumerate(inspection.collection.classes))[:classes]
    with progress_bar("contact sheets", len(names)) as bar:
        for label, name in names:
            own = readable[has_class(images.labels[readable], label)]
            parts = {
                part: own[inspection.collection.part[own] == number].tolist()
                for number, part in enumerate(inspection.collection.parts)
            }
            if len(own):
                file = folder / f"{label:0{len(str(len(names)))}d}_{safe_name(name)}.png"
                png = io.BytesIO()
                contact_sheet(images, parts, inspection.preprocessing, pictures).save(png, "PNG")
                write_atomically(file, png.getvalue())
                written[name] = file
            bar.advance()
    if written:
        say(
            f"contact sheets  {folder}"
            + (f" (the first {classes})" if classes < len(inspection.collection.classes) else "")
        )
    return written
