"""A user's LightningDataModule as Graft's own loaders present themselves."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft.config.targets import TARGET
from graft.data.foreign.loader import ModuleLoader, loader_of
from graft.data.foreign.splits import ModuleSplits
from graft.data.preprocessing import Preprocessing
from graft.data.training_data import TrainingData
from graft.errors import ConfigError, DataError


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
        """The first `count` training images, or all if there are fewer: [N, 3, H, W]."""
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
            loader = loader_of(self.module, part, target)
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
