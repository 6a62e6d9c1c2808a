"""The weights that torchvision publishes, with their preprocessing and their classes."""

from collections.abc import Mapping
from pathlib import Path

import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from graft.data.preprocessing import Preprocessing
from graft.models.published import Published, TorchHub

HEAD_BIASES = (
    "classifier.6.bias",
    "classifier.1.bias",
    "classifier.bias",
    "fc.bias",
    "heads.head.bias",
    "head.bias",
)
"""Names of the tensor that has one number per class."""


def published_weights(name: str, weights: str) -> Published | None:
    """The weights of torchvision's network `name`; None where it has no such entry.

    Args:
        name: of the network, e.g. "vgg16".
        weights: "default" or the name of an entry, e.g. "IMAGENET1K_V1".
    """
    entries = torchvision.models.get_model_weights(name)
    entry = entries.DEFAULT if weights == "default" else entries.__members__.get(weights)
    if entry is None:
        return None
    return Published(
        name=f"torchvision {name} {entry.name}",
        title=f"ImageNet weights of {name} ({entry.name})",
        address=TorchHub(entry.url),
        preprocessing=_preprocessing(entry),
        classes=tuple(entry.meta["categories"] or ()) or None,
    )


def preprocessing_of_copy(name: str, file: Path) -> Preprocessing | None:
    """The preprocessing of a copy of one of the weight files of `name`, recognised by its name, which contains its
    hash; else None."""
    entries = torchvision.models.get_model_weights(name)
    copied = next((entry for entry in entries if TorchHub(entry.url).path.name == file.name), None)
    return None if copied is None else _preprocessing(copied)


def imagenet_classes() -> tuple[str, ...]:
    """Names of ImageNet's 1,000 classes."""
    return tuple(torchvision.models.AlexNet_Weights.DEFAULT.meta["categories"])


def imagenet_classes_of(tensors: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    """ImageNet's classes if the head in `tensors` has as many rows; else None."""
    classes = imagenet_classes()
    return classes if any(key in tensors and len(tensors[key]) == len(classes) for key in HEAD_BIASES) else None


def _preprocessing(entry: WeightsEnum) -> Preprocessing:
    transforms = entry.transforms()
    return Preprocessing(
        input_size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )
