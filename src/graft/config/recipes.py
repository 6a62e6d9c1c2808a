"""From configuration to the plain descriptions that the rest of the code takes."""

from typing import Any

from graft.config.registration import plain
from graft.data.preprocessing import Preprocessing
from graft.models.configurations import NETWORKS
from graft.models.recipe import Recipe


def recipe_of(config: Any) -> Recipe:
    """The network's recipe as the configuration gives it."""
    model = config.model
    return Recipe(
        name=model.name,
        table=None if model.table is None else tuple(model.table),
        batch_norm=model.batch_norm,
        classifier=model.classifier,
        input_size=model.input_size,
        dropout=model.dropout,
        average_pool=model.average_pool,
        family=model.family,
    )


def preprocessing_of(config: Any) -> Preprocessing:
    """What evaluation does to an image by `config.model` and `config.data.preprocess`; imports torch only for a network
    or weights whose own preprocessing nothing else tells."""
    recipe, weights = recipe_of(config), config.model.weights
    if recipe.family is None and (weights is None or (weights == "default" and recipe.name in NETWORKS)):
        own = recipe.usual_preprocessing()
    else:
        from graft.models.weights import default_preprocessing

        own = default_preprocessing(recipe, weights)
    return own.changed(plain(config.data.preprocess), "data.preprocess")
