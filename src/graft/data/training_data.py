"""The data interface of training and evaluation, for Graft's own loaders and for a user's LightningDataModule."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

from lightning.pytorch import LightningDataModule
from torch import Tensor

from graft.data.bands import Levels
from graft.data.preprocessing import Preprocessing
from graft.data.splits import Splits
from graft.data.unreadable import UnreadableImages


class Loader(Protocol):
    """A loader of one split that can be resumed within an epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: dict[str, int], /) -> None: ...


class TrainingData(LightningDataModule):
    """A LightningDataModule whose loaders yield `Batch`es.

    Attributes:
        splits: the classes and the images of each split.
        preprocessing: of the images; integer batches are normalised with its mean and std.
        batch_size: images per training step and device.
        avoid_single: whether a last training batch of one image is dropped.
        unreadable: replaces unreadable images; None: they are an error.
        pictures: whether single images are available, which figures and the feature cache need.
    """

    splits: Splits
    preprocessing: Preprocessing
    batch_size: int
    avoid_single: bool
    unreadable: UnreadableImages | None
    pictures: bool

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded images on the GPU."""
        return 0

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Training batches of this process in an epoch."""

    @abstractmethod
    def eval_loader(self, part: str) -> Loader:
        """A loader of "train", "val" or "test" in order, without augmentation."""

    @abstractmethod
    def sample(self, count: int) -> Tensor:
        """`count` training images, or all if there are fewer: [N, C, H, W]."""

    @abstractmethod
    def picture(self, part: str, index: int) -> Levels:
        """One image of "train", "val" or "test", [H, W, C]."""
