"""Data sets, their splits, and the batches made of them.

Importing this package is cheap: only `transforms`, `datasets`, `sampler` and `datamodule` need torch, and
nothing here imports them.
"""

from graft.data.augment import Augment
from graft.data.images import ImageSet
from graft.data.sources import load_splits
from graft.data.splits import Splits

__all__ = ["Augment", "ImageSet", "Splits", "load_splits"]
