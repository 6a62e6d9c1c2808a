"""Training with a user's LightningDataModule: `data._target_=my_package.MyDataModule`.

Its loaders yield batches of (images, labels), or mappings with the keys `image` and `label`. uint8 images [B, 3, H, W]
are normalised by Graft as the network expects; floating-point images are passed to the network unchanged.

Training, resuming and evaluation depend on the seed alone, unless a loader keeps its worker processes between epochs
(persistent_workers=True), whose generators then continue; a note says so.
"""

from graft.data.foreign.datamodule import ForeignDataModule
from graft.data.foreign.discovery import build_module, describe, open_module
from graft.data.foreign.loader import ModuleLoader, to_batch
from graft.data.foreign.splits import ModuleImages, ModuleSplits

__all__ = [
    "ForeignDataModule",
    "ModuleImages",
    "ModuleLoader",
    "ModuleSplits",
    "build_module",
    "describe",
    "open_module",
    "to_batch",
]
