"""Networks: Graft's VGGs, torchvision's and timm's classifiers and custom ones, their heads and their weights.

Importing this package or `graft.models.recipe` imports no torch; `build_network` does.
"""

from typing import TYPE_CHECKING

from graft.models.recipe import Recipe
from graft.models.registry import family_of, suggest_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Recipe", "build_network", "fixed_input_size", "suggest_model"]


def build_network(recipe: Recipe, num_classes: int) -> "nn.Module":
    """Build the network that a recipe describes, initialised from torch's global generator.

    Shapes: images [B, 3, S, S] -> logits [B, num_classes], with S = `recipe.facts().input_size`.

    Args:
        recipe: the name of the network and its options.
        num_classes: length of the logits, at least 1.

    Raises:
        ConfigError: an unknown network, a key it does not have, an input smaller than its pools allow.
    """
    return family_of(recipe).build(recipe, num_classes)


def fixed_input_size(recipe: Recipe) -> int | None:
    """Side, in pixels, of the only square image that the recipe's network takes; None where it takes several sizes."""
    return family_of(recipe).fixed_input_size(recipe)
