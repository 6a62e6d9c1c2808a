"""From configuration to the plain descriptions that the rest of the code takes."""

from typing import Any

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
