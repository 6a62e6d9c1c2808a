"""`graft pack`: writes a data set as shards, which train from a folder, an HTTP server or S3 as the files do."""

import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

from graft.config.commands import PackConfig
from graft.config.fields import check_ranges
from graft.config.registration import typed
from graft.config.schema import DataConfig
from graft.data.image_format import ImageFormat
from graft.data.layout import NO_FILE
from graft.data.loading import load_published, unused_of
from graft.data.scan import MAX_CHECKED, scan
from graft.data.shards.index import Index
from graft.data.shards.packing import Options, Packing, pack, require_output
from graft.data.sources import check_source, checked_name, is_data_module, source_arguments
from graft.data.sources.base import Source
from graft.errors import ConfigError, DataError, listed
from graft.system import downloads
from graft.system.files import readable_size, require_writable
from graft.system.folder_lock import FolderLock
from graft.system.progress import progress_bar
from graft.tasks.command_checks import overridden_keys
from graft.tasks.data import data_root, missing_data
from graft.tasks.locations import check_written
from graft.tasks.run import versions

log = logging.getLogger("graft")

READ = (
    "_target_", "name", "root", "download", "on_error", "group_pattern", "channels", "bits", "bands", "max_value",
)  # fmt: skip
"""Keys of DataConfig that a packed data set depends on; it is divided when it is trained on."""

LISTED = 20


def main(config: DictConfig) -> None:
    """Run `graft pack`.

    Args:
        config: a PackConfig, composed by Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    cfg = typed(config, PackConfig)
    check(cfg, overridden_keys(HydraConfig.get().overrides.task) if HydraConfig.initialized() else ())
    run(cfg)


def check(config: PackConfig, overrides: Collection[str] = ()) -> None:
    """Refuse mistakes in a PackConfig.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, PackConfig)
    if config.output is None:
        raise ConfigError("output is not set.\nGive output=FOLDER, a new one.")
    known = {field.name for field in fields(DataConfig)} - set(READ)
    for key in sorted(overrides):
        if key.startswith("data.") and key.split(".")[1] in known:
            raise ConfigError(f"{key}: all images are packed; this key counts when they are trained on.\nLeave it out.")
    if config.short_side is not None and not (image_format := ImageFormat.of(config.data)).is_rgb:
        raise ConfigError(
            f"short_side={config.short_side} and images of {image_format} disagree: only RGB images are made smaller.\n"
            "Leave short_side out."
        )
    config.data.name = checked_name(config.data.name, config.data._target_)
    check_source(config.data._target_, source_arguments(config.data, DataConfig))
    if is_data_module(config.data._target_):
        raise ConfigError(
            f"data._target_={config.data._target_}: a LightningDataModule gives batches, but files are packed."
        )
    folder = Path(config.output).expanduser()
    check_written(config.data.root, config.paths.outputs, {"output": config.output})
    require_writable(folder, "output")
    require_output(folder)


def run(config: PackConfig) -> Index:
    """Pack the configured data set.

    Raises:
        DataError: unreadable images and data.on_error=raise; names them.
    """
    downloads.configure(config.download)
    missing = missing_data(config)
    if missing is not None:
        raise missing
    published, root = load_published(
        config.data._target_,
        root=data_root(config),
        seed=config.seed,
        group_pattern=config.data.group_pattern,
        download=config.data.download,
        arguments=source_arguments(config.data, DataConfig),
        image_format=ImageFormat.of(config.data),
    )
    unused = unused_of(published, root)
    without_file = [name for name, reason in unused if reason == NO_FILE]
    if without_file and config.data.on_error == "raise":
        raise DataError(_refusal([f"{name} (missing)" for name in without_file]))
    if config.data.on_error == "raise":
        _refuse_unreadable(published)
    folder = Path(str(config.output)).expanduser()
    described = {"name": config.data.name, "versions": versions(), "short_side": config.short_side}
    packing = Packing.of(published, Options(config.shard_mb, config.short_side), unused, described)
    with FolderLock(folder, "output"):
        require_output(folder)
        with progress_bar("packing images", packing.total) as bar:
            index = pack(packing, folder, bar.advance, refuse=_refusal if config.data.on_error == "raise" else None)
    _report(index, folder, ImageFormat.of(config.data))
    return index


def _refuse_unreadable(published: Source) -> None:
    """Refuse images that are unreadable as far as the check before training shows, before anything is written."""
    parts = published.parts()
    step = -(-sum(map(len, parts)) // MAX_CHECKED) or 1
    with progress_bar("checking images", sum(len(part.paths or ()) for part in parts)) as bar:
        found = [(part, scan(part, step, bar.advance)) for part in parts]
    unreadable = [
        f"{part.names[row]} ({fault.kind}: {fault.reason})" for part, faults in found for row, fault in faults.items()
    ]
    if unreadable:
        raise DataError(_refusal(unreadable))


def _refusal(unreadable: Collection[str]) -> str:
    return (
        f"{len(unreadable):,} images cannot be read: {listed(unreadable, LISTED)}.\n"
        "Remove or replace them, or set data.on_error=skip to pack them as they are; training then skips them."
    )


def _report(index: Index, folder: Path, image_format: ImageFormat) -> None:
    counts = ", ".join(f"{count:,} {split}" for split, count in index.counts.items())
    size = readable_size(sum(shard.filesize for shard in index.shards))
    log.info(
        "%s images of %d classes in %d shards, %s: %s", counts, len(index.classes), len(index.shards), size, folder
    )
    for kind, count in Counter(kind for kind, _ in index.faults.values()).most_common():
        log.info("note  %s unreadable images are packed as they are (%s)", f"{count:,}", kind)
    for reason, count in Counter(reason for _, reason in index.unused).most_common():
        log.info("note  %s not packed (%s)", f"{count:,}", reason)
    words = ["graft train data=shards", f"data.root={folder}", *filter(None, [image_format.overrides()])]
    log.info("train on them: %s", " ".join(words))
