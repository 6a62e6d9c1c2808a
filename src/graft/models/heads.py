"""Where the head of a network is: the layers that are re-initialised for new classes, and the modules above the trunk.

Each family of networks knows its own; see `graft.models.registry`.
"""

from typing import TYPE_CHECKING

from graft.models.registry import family_of_network

if TYPE_CHECKING:
    from torch import nn


def head_modules(network: "nn.Module") -> tuple[str, ...]:
    """Names of the modules that compute the logits, with a normalisation that is part of it; the main head first.

    Raises:
        ConfigError: the network has neither a linear layer nor a convolution.
    """
    return family_of_network(network).head(network)


def auxiliary_modules(network: "nn.Module") -> tuple[str, ...]:
    """Names of the auxiliary classifiers, which only training uses (Szegedy et al. 2015)."""
    return family_of_network(network).auxiliary(network)


def allow_negative_logits(network: "nn.Module") -> tuple[str, ...]:
    """Replace, in place, what keeps logits from being negative by the identity: a sigmoid needs them.

    Returns:
        The names of the replaced modules, which have no parameters.
    """
    from torch import nn

    names = family_of_network(network).bounds(network)
    for name in names:
        network.set_submodule(name, nn.Identity())
    return names


def top_modules(network: "nn.Module") -> tuple[str, ...]:
    """Names of the modules above the trunk that a weight file may lack, the head among them."""
    family = family_of_network(network)
    return *family.classifier(network), *family.auxiliary(network), *family.head(network)
