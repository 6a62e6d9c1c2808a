"""From the configuration to the descriptions of network and preprocessing that the rest of the code takes."""

from dataclasses import replace
from typing import Protocol, cast

from omegaconf import DictConfig, OmegaConf

from graft.config.registration import plain
from graft.config.schema import DataConfig, ModelConfig
from graft.config.targets import TARGET, check_target, short_name
from graft.data.image_format import ImageFormat
from graft.data.preprocessing import Preprocessing
from graft.models.recipe import Recipe
from graft.models.registry import TARGETS, facts_of, family_of

OPTIONS = ("name", "table", "batch_norm", "classifier", "dropout", "input_size", "average_pool", "hidden")
"""Keys of `model` that are options of a recipe, where the network is Graft's, torchvision's or timm's."""


class HasModel(Protocol):
    """A configuration with the group `model`."""

    @property
    def model(self) -> ModelConfig: ...


class HasModelAndData(HasModel, Protocol):
    """A configuration with the groups `model` and `data`."""

    @property
    def data(self) -> DataConfig: ...


def recipe_of(config: HasModel | DictConfig) -> Recipe:
    """The recipe of the configured network, for the images of `config.data` if there are any; see `recipe_of_model`."""
    model = OmegaConf.to_object(config.model) if OmegaConf.is_config(config.model) else config.model
    recipe = recipe_of_model(cast(ModelConfig, model))
    data = getattr(config, "data", None)
    if isinstance(data, DataConfig):
        recipe = replace(recipe, channels=ImageFormat.of(data).channels)
    return recipe


def recipe_of_model(model: ModelConfig) -> Recipe:
    """The recipe of the network that the group `model` configures.

    Raises:
        ConfigError: an argument that the target does not take (names the nearest), or one that is not a plain value.
    """
    arguments = model.arguments()
    target = arguments.pop(TARGET, next(iter(TARGETS)))
    if target in TARGETS:
        options = {key: arguments.pop(key) for key in OPTIONS if key in arguments}
        if arguments:
            check_target("model", {TARGET: target, "name": model.name, **arguments}, supplied=("num_classes",))
        recipe = Recipe(**options, family=TARGETS[target])
        facts_of(recipe)  # refuses an unknown name, with the one that was probably meant
        return recipe
    name, input_size = arguments.pop("name", short_name(target)), arguments.pop("input_size", None)
    return Recipe(name, input_size=input_size, target=target, arguments=arguments)


def preprocessing_of(config: HasModelAndData | DictConfig) -> Preprocessing:
    """What evaluation does to an image by `config.model` and `config.data.preprocess`; imports torch only for networks
    or weights whose preprocessing is known to their library alone."""
    recipe, weights = recipe_of(config), config.model.weights
    own = family_of(recipe).known_preprocessing(recipe, weights)
    if own is None:
        from graft.models.weights import default_preprocessing

        own = default_preprocessing(recipe, weights)
    return own.in_format(ImageFormat.of(config.data)).changed(plain(config.data.preprocess), "data.preprocess")
