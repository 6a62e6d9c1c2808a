"""The families of networks, each in a module of its own; this package imports no torch."""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from graft.errors import nearest
from graft.models.families.base import Constructor, ModelFamily

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from graft.models.recipe import Recipe

__all__ = ["TARGETS", "Constructor", "ModelFamily", "family_of", "family_of_network", "suggest_model"]

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
    family: ModelFamily = import_module(f"{__name__}.{name}").FAMILY
    return family


def family_of(recipe: "Recipe") -> ModelFamily:
    """The family that builds the recipe's network; imports no torch."""
    if recipe.target is not None:
        return _family("custom")
    if recipe.family is not None:
        return _family(recipe.family)
    from graft.models.families.ours import NETWORKS

    return _family("ours" if recipe.name in NETWORKS or recipe.table is not None else "torchvision")


def family_of_network(network: "nn.Module") -> ModelFamily:
    """The family that knows the parts of a built network: that of the library which defines its class."""
    return _family(LIBRARIES.get(type(network).__module__.partition(".")[0], "custom"))


def known_models() -> tuple[str, ...]:
    """Every name that a network of Graft or torchvision has: those with facts first, then torchvision's others."""
    from graft.models.families import ours, torchvision

    known = (*ours.NETWORKS, *torchvision.NETWORKS)
    return *known, *sorted(torchvision.classifiers() - set(known))


def suggest_model(name: str, options: "Iterable[str] | None" = None) -> str:
    """What to write instead of model=NAME where there is no such option: a sentence, or "" where nothing is similar.

    Args:
        name: as given, e.g. "resnet50" or "vgg61"; timm's names with or without a tag.
        options: the options of the group `model`; by default those networks that Graft has facts about.
    """
    from graft.models.families import ours, timm, torchvision

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
