"""From the configuration to the descriptions of network and preprocessing that the rest of the code takes."""

from typing import Any

from omegaconf import OmegaConf

from graft.config.targets import TARGET, check_target, short_name
from graft.data.preprocessing import Preprocessing
from graft.models.families import TARGETS, family_of
from graft.models.recipe import Recipe

OUTSIDE = ("weights", "head_from", "gradient_clip_val")
"""Keys of `model` that are not about how the network is built."""

OPTIONS = ("name", "table", "batch_norm", "classifier", "dropout", "input_size", "average_pool")
"""Keys of `model` that are options of a recipe, where the network is Graft's, torchvision's or timm's."""


def recipe_of(config: Any) -> Recipe:
    """The recipe of the configured network.

    Raises:
        ConfigError: an argument that the target does not take (names the nearest), or one that is no plain value.
    """
    model: dict[str, Any] = OmegaConf.to_container(config.model, resolve=True)  # type: ignore[assignment]
    target = model.pop(TARGET, None)
    given = {key: value for key, value in model.items() if value is not None and key not in OUTSIDE}
    if target is None or target in TARGETS:
        options = {key: given.pop(key) for key in OPTIONS if key in given} | {"name": config.model.name}
        target = target or next(iter(TARGETS))
        if given:
            check_target("model", {TARGET: target, "name": options["name"], **given}, supplied=("num_classes",))
        return Recipe(**options, family=TARGETS[target])
    name = given.pop("name", "???")
    return Recipe(
        short_name(str(target)) if name == "???" else name,
        input_size=given.pop("input_size", None),
        target=target,
        arguments=given,
    )


def preprocessing_of(config: Any) -> Preprocessing:
    """What evaluation does to an image by `config.model` and `config.data.preprocess`; imports torch only for networks
    or weights whose preprocessing is known to their library alone."""
    recipe, weights = recipe_of(config), config.model.weights
    own = family_of(recipe).known_preprocessing(recipe, weights)
    if own is None:
        from graft.models.weights import default_preprocessing

        own = default_preprocessing(recipe, weights)
    return own.changed(config.data.preprocess, "data.preprocess")
