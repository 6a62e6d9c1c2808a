"""Networks: our VGGs, torchvision's classifiers, timm's, their heads and their weights.

`graft.models.configurations` and `graft.models.recipe` import no torch, and neither does this package until
`build_network` is called.
"""

from typing import TYPE_CHECKING

from graft.models.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Recipe", "build_network", "built_for"]


def build_network(recipe: Recipe, num_classes: int) -> "nn.Module":
    """Build the network a recipe describes, drawn from torch's global generator.

    Shapes: images [B, 3, S, S] -> logits [B, num_classes], with S = `recipe.facts().input_size`.

    Args:
        recipe: name and departures.
        num_classes: length of the logits, at least 1.

    Raises:
        ConfigError: an unknown network, a key it does not have, an input smaller than its pools allow.
    """
    from graft.models.vgg import VGG
    from graft.models.zoo import build_torchvision

    facts = recipe.facts()
    if facts.family == "torchvision":
        return build_torchvision(recipe.name, num_classes, facts.dropout, recipe.input_size)
    if facts.family == "timm":
        from graft.models.timm_zoo import build_timm

        return build_timm(recipe, num_classes)
    if facts.family == "vgg_speed":
        from graft.models.vgg_speed import VGGSpeed

        return VGGSpeed(num_classes)
    assert facts.table is not None
    assert facts.classifier is not None
    return VGG(
        facts.table,
        num_classes=num_classes,
        batch_norm=bool(facts.batch_norm),
        classifier=facts.classifier,
        input_size=facts.input_size,
        average_pool=facts.average_pool,
        dropout=facts.dropout,
    )


def built_for(recipe: Recipe) -> int | None:
    """Side, in pixels, of the only square image that the recipe's network takes; None where it takes others too."""
    facts = recipe.facts()
    if facts.family == "timm":
        from graft.models import timm_zoo

        return timm_zoo.built_for(recipe)
    return facts.input_size if facts.fixed_size else None
