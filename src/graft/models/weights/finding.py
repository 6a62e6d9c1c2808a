"""Which weights `model.weights` means: a library's own, what is bundled, or a file."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torchvision
from torchvision.models import WeightsEnum

from graft.data.preprocessing import Preprocessing
from graft.errors import WeightsError, nearest
from graft.models.configurations import BUNDLED
from graft.models.published import Address, Published, TorchHub
from graft.models.recipe import Recipe
from graft.system.files import why_no_file


def find_published(recipe: Recipe, weights: str) -> Published | None:
    """The weights of a library if `weights` names such, None if it is a file or ours.

    Raises:
        WeightsError: "default" for a network that the library has no weights of.
    """
    return FINDERS[recipe.facts().family](recipe, weights)


def existing_file(recipe: Recipe, weights: str) -> Path:
    """The file that `weights` names.

    Raises:
        WeightsError: it is not there; names the nearest in its folder, or the networks that have bundled
            weights.
    """
    if weights == "bundled":
        file = BUNDLED / f"{recipe.name}.safetensors"
        if not file.is_file() or recipe.family is not None:
            bundled = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.safetensors"))) or "no network"
            raise WeightsError(
                f"model.weights=bundled: Graft has no weights for model={recipe.name}; it has for {bundled}."
            )
        return file
    file = Path(weights).expanduser()
    if reason := why_no_file(file):
        neighbours = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
        words = ["default", "bundled", *(neighbours if file.name != weights or neighbours else [])]
        raise WeightsError(
            f"model.weights={weights}: {reason}.{nearest(file.name, words)} "
            "It is default, bundled, null, or a .pth, .safetensors or .ckpt file."
        )
    return file


def preprocessing_of_copy(recipe: Recipe, file: Path) -> Preprocessing | None:
    """What a copy of one of torchvision's files expects, told by its name (which holds its hash); else None."""
    name = recipe.torchvision_name()
    entries: Iterable[WeightsEnum] = torchvision.models.get_model_weights(name) if name else ()
    copied = next((entry for entry in entries if TorchHub(entry.url).place.name == file.name), None)
    return None if copied is None else _preprocessing(copied)


def _of_torchvision(recipe: Recipe, weights: str) -> Published | None:
    name = recipe.torchvision_name()
    if name is None:
        if weights == "default":
            raise WeightsError(
                f"model.weights=default: torchvision has no weights for {recipe.name} with this table. "
                "Train it from random weights (strategy=scratch), or name a file: model.weights=FILE."
            )
        return None
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


def _preprocessing(entry: WeightsEnum) -> Preprocessing:
    transforms = entry.transforms()
    return Preprocessing(
        input_size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def _of_timm(recipe: Recipe, weights: str) -> Published | None:
    if weights != "default":
        return None
    from graft.models import timm_zoo
    from graft.models.weights.hugging_face import HuggingFace

    config = timm_zoo.pretrained_config(recipe.name)
    address: Address
    if config.hf_hub_id:
        address = HuggingFace(config.hf_hub_id, *([(config.hf_hub_filename,)] if config.hf_hub_filename else []))
    elif config.url:
        address = TorchHub(config.url if isinstance(config.url, str) else config.url[0])
    else:
        tagged = timm_zoo.names_with_weights(recipe.name)
        raise WeightsError(
            f"model.weights=default: timm has no weights for {recipe.name}"
            + (f"; it has for {', '.join(tagged)}. " if tagged else ". ")
            + "Train it from random weights (strategy=scratch), or name a file: model.weights=FILE."
        )
    name = ".".join(filter(None, (config.architecture, config.tag)))
    return Published(
        name=f"timm {name}",
        title=f"timm's weights {name}",
        address=address,
        preprocessing=timm_zoo.preprocessing_of(config),
        classes=timm_zoo.classes_of(config),
    )


FINDERS: dict[str, Callable[[Recipe, str], Published | None]] = {
    "vgg": _of_torchvision,
    "vgg_speed": _of_torchvision,
    "torchvision": _of_torchvision,
    "timm": _of_timm,
}
"""Family of network -> who publishes weights for it."""
