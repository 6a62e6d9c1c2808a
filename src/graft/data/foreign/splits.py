"""What is known about the images of a LightningDataModule: class names, numbers, labels, size."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from PIL import Image

from graft.config.targets import TARGET
from graft.config.task import SINGLE_LABEL, Task
from graft.data.images import ImageSet
from graft.data.preprocessing import Preprocessing
from graft.data.sampler import PADDING
from graft.data.splits import Splits
from graft.errors import ConfigError, DataError


class NumberedNames(Sequence[str]):
    """Names "val/0", "val/1", … for the images of a split, because a data module has none."""

    def __init__(self, part: str, length: int) -> None:
        self.part, self.length = part, length

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(self.length)[index]]
        return f"{self.part}/{range(self.length)[index]}"


@dataclass(frozen=True)
class ModuleImages(ImageSet):
    """The images of a split of a data module: their number and, if its dataset has them, their labels."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.labels):
            raise ValueError("names and labels differ in number")

    @property
    def labelled(self) -> bool:
        """Whether all labels are known."""
        return bool((self.labels != PADDING).all())

    def load(self, index: int) -> Image.Image:
        """Raise DataError, because single images are not available."""
        raise DataError(f"{self.names[index]}: a LightningDataModule yields batches, not single images.")

    def counts(self, num_classes: int) -> list[int]:
        """Number of images of each class.

        Raises:
            DataError: the labels are unknown.
        """
        if not self.labelled:
            raise DataError(
                "the images of each class cannot be counted: the dataset of the LightningDataModule has no `targets`.\n"
                "Give it that attribute, or loss.class_weights as numbers."
            )
        return super().counts(num_classes)


@dataclass(frozen=True)
class ModuleSplits(Splits):
    """What is known about the data of a LightningDataModule.

    Attributes:
        target: dotted path of its class.
        input_size: side of the images that its loaders yield, in pixels.
        uint8: whether they are uint8 and so normalised by Graft.
        arguments: of the class, as JSON.
        module: the data module.
    """

    target: str = ""
    input_size: int = 0
    uint8: bool = True
    arguments: str = ""
    module: Any = field(default=None, compare=False, repr=False)

    def of_task(self, task: Task) -> "ModuleSplits":
        """The same data; raises DataError for a network of several labels."""
        if task is not SINGLE_LABEL:
            raise DataError(f"data.{TARGET}={self.target}: has one label per image, and the network is for several.")
        return self

    def part(self, name: str) -> ImageSet:
        """The validation or test part.

        Raises:
            ConfigError: "train" or "all": the training loader shuffles and augments.
        """
        if name in ("train", "all"):
            raise ConfigError(f"data.{TARGET}={self.target}: its training loader augments; choose split=val or test.")
        return self.parts()[name]

    def preprocessing(self, network: Preprocessing, changes: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing of the loaders' images: the network's normalisation at their input size.

        Args:
            network: preprocessing of the network, with `changes` applied.
            changes: data.preprocess.

        Raises:
            ConfigError: a key of data.preprocess that cannot change these images.
        """
        for key in ("resize_size", "fit", "interpolation", *(() if self.uint8 else ("mean", "std"))):
            if changes.get(key) is not None:
                raise ConfigError(
                    f"data.preprocess.{key}={changes[key]}: does not change the images of {self.target}.\n"
                    "Change them in its datasets."
                )
        if changes.get("input_size") not in (None, self.input_size):
            raise ConfigError(
                f"data.preprocess.input_size={changes['input_size']}: the images of {self.target} are "
                f"{self.input_size} x {self.input_size} pixels."
            )
        return replace(network, input_size=self.input_size, resize_size=self.input_size, fit="squash")

    def counts(self) -> dict[str, dict[str, int]]:
        """Split name → class name → number of images, for the splits whose labels are known."""
        known = {name: part for name, part in self.parts().items() if (part.labels != PADDING).all()}
        return {
            name: dict(zip(self.classes, part.counts(len(self.classes)), strict=True)) for name, part in known.items()
        }

    def relabelled(self, classes: Sequence[str]) -> "ModuleSplits":
        """These splits unchanged; their classes must be those of the network in the same order."""
        if tuple(classes) != self.classes:
            raise DataError(
                f"data.{TARGET}={self.target}: its classes are not those of the network, in the same order.\n"
                f"network  {', '.join(classes)}\ndata     {', '.join(self.classes)}"
            )
        return self

    def fingerprint(self) -> str:
        """SHA-256 (hex) over the data module's class and arguments, the class names and the numbers of images."""
        sizes = {name: len(part) for name, part in self.parts().items()}
        described = [self.target, self.arguments, self.classes, sizes]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
