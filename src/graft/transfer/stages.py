"""A network as an ordered list of named parts, from input to output."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graft.models.layouts import AUXILIARY, CLASSIFIER, FEATURES, HEAD, Stage
from graft.models.registry import family_of_network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["AUXILIARY", "CLASSIFIER", "FEATURES", "HEAD", "Stage", "stage_by_parameter", "stages_of"]


def stages_of(network: "nn.Module") -> tuple[Stage, ...]:
    """The stages of `network`; each parameter is in exactly one.

    VGGs have `block1..` (group features), the linear layers before the last (group classifier) and `head`.
    torchvision's networks have the parts that their papers name, timm's those that timm groups, custom ones those that
    they declare (`graft.models.families.custom.CustomNetwork`). Any other is opened at its own containers until no
    part has more than half of the trunk.

    Raises:
        ConfigError: the network has no layer that could be its head, or declares stages that do not partition it.
    """
    parameters = [name for name, _ in network.named_parameters()]
    stages = family_of_network(network).stages(network)
    return tuple(stage for stage in stages if any(stage.holds(name) for name in parameters))


def stage_by_parameter(network: "nn.Module", stages: Sequence[Stage]) -> dict[str, Stage]:
    """For each parameter of `network`, in order, the stage it belongs to."""
    return {name: next(stage for stage in stages if stage.holds(name)) for name, _ in network.named_parameters()}
