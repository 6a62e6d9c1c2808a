"""timm's networks by name, with a head for the classes wanted (Wightman 2019). Imported only for `model=timm`."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, nearest
from graft.models.heads import belongs, head_modules
from graft.models.recipe import INSTALL_TIMM, Recipe

try:
    import timm
except ImportError as error:
    raise ConfigError(
        f"model=timm: needs timm, which cannot be imported ({error}). Install it: {INSTALL_TIMM}"
    ) from error

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

IMAGENET_1K = "imagenet-1k"


def build_timm(recipe: Recipe, num_classes: int) -> nn.Module:
    """timm's network at random, as `timm.create_model` draws it, its head too.

    Shapes: images [B, 3, S, S] -> logits [B, num_classes].

    Args:
        recipe: `name` with or without a tag; `dropout` is timm's `drop_rate`, before the head; `input_size` matters
            to networks with position embeddings or windows.
        num_classes: length of the logits.

    Raises:
        ConfigError: an unknown name or tag, a network without a head, or one that cannot be built as asked.
    """
    config = pretrained_config(recipe.name)
    if not config.classifier:
        raise ConfigError(f"model=timm model.name={recipe.name}: has no head for classes. Choose a classifier.")
    try:
        network = timm.create_model(recipe.name, num_classes=num_classes, **builder_arguments(recipe, config))
        if recipe.input_size is not None:
            _try(network, recipe.input_size)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        departures = [f"model.{key}={value}" for key in ("input_size", "dropout") if (value := getattr(recipe, key))]
        raise ConfigError(
            f"model=timm model.name={recipe.name} {' '.join(departures)}: timm cannot build it so ({error})."
        ) from error
    return network


@cache
def pretrained_config(name: str) -> "PretrainedCfg":
    """What timm says of `name` and the weights of its tag (without one: of those it takes first).

    Raises:
        ConfigError: an unknown tag (names the nearest), or a network that takes no square images.
    """
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_models(f"{name.partition('.')[0]}.*", include_tags=True)
        raise ConfigError(
            f'model.name="{name}": timm has no weights of that tag.{nearest(name, known)} There are {", ".join(known)}.'
        ) from error
    if config is None:
        return timm.models.PretrainedCfg()
    height, width = config.input_size[1:]
    if height != width:
        raise ConfigError(f'model.name="{name}": takes images of {height}x{width} pixels; Graft feeds square ones.')
    return config


def names_with_weights(name: str) -> list[str]:
    """`name`'s architecture with each tag that timm has weights of."""
    return timm.list_pretrained(f"{name.partition('.')[0]}.*")


def preprocessing_of(config: "PretrainedCfg") -> Preprocessing:
    """What evaluation does to an image, as timm's own `create_transform` does.

    Where timm keeps the proportions by borders, or squashes and then crops, the whole image is squashed.
    """
    size = config.input_size[-1]
    return Preprocessing.from_dict(
        {
            "input_size": size,
            "resize_size": int(size / (config.crop_pct or 0.875)),
            "fit": "squash" if config.crop_mode in ("squash", "border") else "crop",
            "mean": tuple(config.mean),
            "std": tuple(config.std),
            "interpolation": config.interpolation,
        },
        "timm",
    )


def classes_of(config: "PretrainedCfg") -> tuple[str, ...] | None:
    """Names of the classes that the weights tell apart: ImageNet's, or one of its larger sets'; else None."""
    from timm.data import ImageNetInfo, infer_imagenet_subset
    from torchvision.models import AlexNet_Weights

    subset = infer_imagenet_subset({"num_classes": config.num_classes})
    if subset == IMAGENET_1K:
        return tuple(AlexNet_Weights.DEFAULT.meta["categories"])
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None


def classes_in(tensors: Mapping[str, Tensor], config: "PretrainedCfg") -> tuple[str, ...] | None:
    """`classes_of(config)` if a file's head is of as many classes."""
    return classes_of(config) if _rows(tensors, classifiers(config)) == config.num_classes else None


def classifiers(config: "PretrainedCfg | Mapping[str, Any]") -> tuple[str, ...]:
    """Names of the modules that make logits; more than one where a network was distilled."""
    named = config.get("classifier") if isinstance(config, Mapping) else config.classifier
    return (named,) if isinstance(named, str) else tuple(named or ())


def built_for(recipe: Recipe) -> int | None:
    """Side of the only image the network takes, in pixels; None where it takes others too."""
    config = pretrained_config(recipe.name)
    return (recipe.input_size or config.input_size[-1]) if config.fixed_input_size else None


def todays_keys(network: nn.Module, recipe: Recipe, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` as the network has them: unless they fit, timm converts them, as it does when it loads weights.

    Names of other libraries' files are translated, position embeddings of another image size interpolated. What timm
    cannot convert is returned as it is, for `fit` to say what is wrong with it.
    """
    if _fits(network, tensors):
        return dict(tensors)
    config = pretrained_config(recipe.name)
    classes = _rows(tensors, head_modules(network)) or config.num_classes
    overlay = {"state_dict": dict(tensors), "num_classes": classes, "custom_load": False}
    arguments = builder_arguments(recipe, config) | {"pretrained_cfg_overlay": overlay, "num_classes": classes}
    try:
        return timm.create_model(recipe.name, pretrained=True, **arguments).state_dict()
    except Exception:  # a conversion of a file that is none of its network's may stumble over anything
        return dict(tensors)


@torch.no_grad()
def _try(network: nn.Module, size: int) -> None:
    """Feed it one black image: many a network only then notices that its windows do not fit into the map."""
    device = next(network.parameters()).device
    network.eval()(torch.zeros(1, 3, size, size, device=device))
    network.train()


def builder_arguments(recipe: Recipe, config: "PretrainedCfg") -> dict[str, Any]:
    """What departs from the network as timm knows it."""
    sized = recipe.input_size is not None and config.fixed_input_size
    return ({"img_size": recipe.input_size} if sized else {}) | (
        {} if recipe.dropout is None else {"drop_rate": recipe.dropout}
    )


def _fits(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the trunk is there whole, and nothing else but a head of whatever size."""
    head = head_modules(network)
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items() if not belongs(key, head)}
    found = {key: tuple(value.shape) for key, value in tensors.items() if not belongs(key, head)}
    return wanted == found


def _rows(tensors: Mapping[str, Tensor], head: tuple[str, ...]) -> int:
    """Number of classes of the first head there is; 0 for none."""
    return next((len(tensors[key]) for name in head if (key := f"{name}.weight") in tensors), 0)
