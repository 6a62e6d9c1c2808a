"""`graft export`: a network in formats that other programs read, each file verified before it is kept."""

import dataclasses
import itertools
import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from graft.config.commands import ExportConfig
from graft.config.registration import typed
from graft.data.image_format import ImageFormat
from graft.data.images import ImageSet
from graft.data.stream import find_images
from graft.errors import ConfigError, DataError
from graft.export.format import Format, build_formats, decisions_of_network
from graft.learning.checkpoints import checkpoint_file
from graft.system.files import require_writable, safe_name, sha256, writing_folder_atomically
from graft.system.folder_lock import output_folder
from graft.system.startup import garbage_collection_paused
from graft.tasks.command_checks import check_export, overridden_keys
from graft.tasks.data import missing_data, open_data
from graft.tasks.locations import check_written
from graft.tasks.recorded_data import run_config, summary_next_to
from graft.tasks.run import versions

if TYPE_CHECKING:
    from torch import Tensor

    from graft.export.formats import ExportedNetwork, Verification
    from graft.learning.restore import Restored

log = logging.getLogger("graft")


def main(config: DictConfig) -> None:
    """Run `graft export`.

    Args:
        config: an ExportConfig, composed by Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    export(config, overridden_keys(HydraConfig.get().overrides.task))


def export(config: DictConfig, overrides: Collection[str] = ()) -> None:
    """Write each format; a file is kept only if, read back, it computes what the checkpoint does.

    Raises:
        DataError: no images to compare on.
        ExportError: a file computes something else.
    """
    cfg = typed(config, ExportConfig)
    check_export(cfg)
    formats = build_formats(cfg.format.parts())
    for name, form in formats.items():
        if cfg.preprocess and form.weights_only:
            raise ConfigError(
                f"format.{name} and preprocess=true disagree: it holds weights, no computation.\n"
                "Leave preprocess out, or use format=onnx or format=torch_export."
            )
    require_writable(Path(cfg.folder), "folder")
    checkpoint = checkpoint_file(str(cfg.checkpoint))
    with garbage_collection_paused():  # torch is imported only once there is something to export
        from graft.export.formats import ExportedNetwork, verify
        from graft.learning.restore import from_file

    restored = from_file(checkpoint, cfg.trust, cfg.model)
    for note in restored.notes:
        log.info("note  %s", note)
    images = real_images(cfg, restored, overrides)
    network = ExportedNetwork(restored, cfg.preprocess)
    if any(form.weights_only for form in formats.values()) and network.origin.library == "graft":
        log.info("note  torchvision has no network with these layers; the names in the state dict are Graft's own")
    output, summary = output_folder(config), summary_next_to(checkpoint)
    for form in formats.values():
        started = time.perf_counter()
        with writing_folder_atomically(output) as folder:
            file = folder / f"{form.name or cfg.name or safe_name(restored.recipe.name)}{form.suffix}"
            form.write(network, file)
            verification = verify(form.read(network, file), network, images, cfg.tolerance, file.name)
            form.describe(network, file, description(network, form, file, verification, checkpoint), summary)
        log.info(
            "%s  %.1f MB  %d images: logits within %.1g, the same %s for all  (%.1f s)",
            output / file.name,
            (output / file.name).stat().st_size / 1e6,
            verification.images,
            verification.largest_difference,
            "class" if restored.thresholds is None else "labels",
            time.perf_counter() - started,
        )
        form.publish(network, output / file.name)


def real_images(cfg: ExportConfig, restored: "Restored", overrides: Collection[str]) -> "Tensor":
    """Images to compare on, levels [N, C, H, W]: of `samples`, else test images of the run.

    Raises:
        DataError: there are none on this machine.
    """
    import torch

    from graft.data.transforms import eval_transform

    image_format = restored.preprocessing.image_format
    if cfg.samples is not None:
        found = list(itertools.islice(find_images([cfg.samples], image_format.extensions), cfg.images))
        paths = [picture.path for picture in found]
        names, labels = [str(picture) for picture in found], np.zeros(len(found), dtype=np.int64)
        images = ImageSet(names, labels, paths=paths, image_format=image_format)
        if not len(images):
            raise DataError(f"samples={cfg.samples}: no image found.")
    else:
        run = run_config(cfg, restored.config, overrides, restored.source)
        image_format.configure(run.data)
        check_written(run.data.root, cfg.paths.outputs, {"folder": cfg.folder})
        missing = missing_data(run, download=False)
        if missing is not None:
            raise DataError(
                f"No images to compare the exported network with the checkpoint on: {missing}\n"
                "Give samples=FOLDER (any photographs), or say where the data are: paths.data=FOLDER, data.root=FOLDER."
            )
        test = open_data(run).test
        images = test.select(test.spread(cfg.images))
    transform = eval_transform(restored.preprocessing)
    return torch.stack([transform(images.load(index)) for index in range(len(images))])


def values_of(image_format: ImageFormat, *, normalised: bool) -> str:
    """What an exported network takes, in words."""
    channels = "RGB" if image_format.is_rgb else str(image_format)
    if normalised:
        return f"{channels}, float32 in [0, 1], minus mean, divided by std"
    return f"{channels}, uint{image_format.bits} from 0 to {image_format.levels}, not normalised"


def description(
    network: "ExportedNetwork", form: Format, file: Path, verification: "Verification", checkpoint: Path
) -> dict[str, Any]:
    """Everything that the user of an exported file needs to know; as a rule the content of the JSON file next to it."""
    restored = network.restored
    return {
        "file": file.name,
        "sha256": sha256(file),
        "network": restored.recipe.name,
        "recipe": restored.recipe.to_dict(),
        "load": form.how_to_load(network, file),
        **form.details(file),
        "classes": list(restored.classes),
        "input": {
            "name": "images",
            "shape": ["batch", *restored.preprocessing.shape],
            "values": values_of(restored.preprocessing.image_format, normalised=not network.preprocess),
        },
        "output": {"name": "logits", "shape": ["batch", len(restored.classes)]},
        **decisions_of_network(restored),
        **restored.preprocessing.to_dict(),
        "checked": dataclasses.asdict(verification),
        "checkpoint": {"file": str(checkpoint), "sha256": sha256(checkpoint)},
        "run": restored.config,
        "versions": versions(),
    }
