"""Which family a network belongs to, and what that family knows of it before it is built; imports no torch."""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from graft.data.preprocessing import Preprocessing, Size, pair, shown_size
from graft.errors import ConfigError, nearest
from graft.models.configurations import Facts
from graft.models.families import ours, timm, torchvision
from graft.models.families.base import ModelFamily, usual_preprocessing
from graft.models.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

TARGETS: dict[str, str | None] = {
    "graft.models.families.ours.vgg": None,
    "graft.models.families.torchvision.network": None,
    "graft.models.families.timm.network": "timm",
}
"""Target of an option file -> the `family` of its recipe. Graft's VGGs and torchvision's networks share one namespace:
a name that both have, e.g. vgg16, is built by Graft, with the same tensors. Every other target is a custom network."""

LIBRARIES = {"graft": "ours", "torchvision": "torchvision", "timm": "timm"}
"""Package that defines a network's class -> its family; every other package's networks are custom ones."""


@cache
def _family(name: str) -> ModelFamily:
    family: ModelFamily = import_module(f"graft.models.families.{name}").FAMILY
    return family


def family_of(recipe: Recipe) -> ModelFamily:
    """The family that builds the recipe's network; imports no torch."""
    if recipe.target is not None:
        return _family("custom")
    if recipe.family is not None:
        return _family(recipe.family)
    return _family("ours" if recipe.name in ours.NETWORKS or recipe.table is not None else "torchvision")


def family_of_network(network: "nn.Module") -> ModelFamily:
    """The family that knows the parts of a built network: that of the library which defines its class."""
    return _family(LIBRARIES.get(type(network).__module__.partition(".")[0], "custom"))


def known_models() -> tuple[str, ...]:
    """Every name that a network of Graft or torchvision has: those with facts first, then torchvision's others."""
    known = (*ours.NETWORKS, *torchvision.NETWORKS)
    return *known, *sorted(torchvision.classifiers() - set(known))


def suggest_model(name: str, options: "Iterable[str] | None" = None) -> str:
    """What to write instead of model=NAME where there is no such option: a sentence, or "" where nothing is similar.

    Args:
        name: as given, e.g. "resnet50" or "vgg61"; timm's names with or without a tag.
        options: the options of the group `model`; by default those networks that Graft has facts about.
    """
    library = "torchvision" if name in torchvision.classifiers() else None
    if library is None and name.partition(".")[0] in timm.architectures():
        library = "timm"
    if library is not None:
        return f" Did you mean model={library} model.name={name}?"
    options = (*ours.NETWORKS, *torchvision.NETWORKS) if options is None else options
    if found := nearest(name, options, cutoff=0.5):
        return found
    named = nearest(name, torchvision.classifiers(), most=1).partition("mean ")[2]
    return f" Did you mean model=torchvision model.name={named}" if named else ""


def facts_of(recipe: Recipe) -> Facts:
    """Everything known about a network before it is built, with the recipe's options applied.

    Raises:
        ConfigError: an unknown name, an invalid table, a key that this network does not have, a number out of range, or
            an input smaller than the pools allow; names the key and the nearest right value.
    """
    family = family_of(recipe)
    if family is _family("torchvision") and recipe.name not in known_models():
        described = ", ".join((*ours.NETWORKS, *torchvision.NETWORKS))
        raise ConfigError(
            f'model.name="{recipe.name}": no such network.{suggest_model(recipe.name, known_models())} '
            f"There are {described}, every other torchvision classifier by its name, any name with a model.table of "
            "layers, and with model=timm every network of timm."
        )
    return family.facts(recipe)


def require_input_size(recipe: Recipe, size: int | Size, key: str, side: int | None = None) -> None:
    """Raise ConfigError, naming `key`, unless the recipe's network takes images of this size.

    Args:
        recipe: the network.
        size: the side of a square, or height and width, in pixels.
        key: the configuration key that sets it.
        side: `graft.models.fixed_input_size` of it, where that was determined already.
    """
    known = facts_of(recipe)
    if side is None and known.fixed_size:
        side = known.input_size
    if min(pair(size)) < known.min_size:
        raise ConfigError(
            f"{key}={shown_size(size)} and model={recipe.name} disagree: this network halves its input so often "
            f"that it needs at least {known.min_size}x{known.min_size} pixels.\n"
            f"Give {key}={known.min_size} or more, or a network with fewer pools."
        )
    if side not in (None, size):
        square = isinstance(size, int)
        raise ConfigError(
            f"{key}={shown_size(size)} and model={recipe.name} disagree: this network is built for images of exactly "
            f"{side}x{side} pixels.\n"
            + (f"Give model.input_size={size} too, or leave {key} out." if square else f"Leave {key} out.")
        )


def default_normalisation(recipe: Recipe) -> Preprocessing:
    """What evaluation does to an image where neither the weights nor the library define it.

    ImageNet's mean and standard deviation (CIFAR-10's for the 32-pixel VGGs) at the network's input size, resized
    to 8/7 of it before the centre crop (224 from 256, 299 from 342) and without a margin at 64 pixels or less.
    torchvision's weights of the networks that it has facts about expect the same.
    """
    return usual_preprocessing(facts_of(recipe))


def torchvision_name(recipe: Recipe) -> str | None:
    """The torchvision network whose published weights fit this network's convolutions; None where there is none."""
    return family_of(recipe).torchvision_name(recipe)
