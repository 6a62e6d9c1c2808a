"""Graft's own networks: VGGs from a table of layers. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, nearest
from graft.models.configurations import (
    BUNDLED,
    CIFAR_MEAN,
    CIFAR_STD,
    CLASSIFIERS,
    TABLES,
    Facts,
    check_dropout_and_size,
    checked_table,
    smallest_input,
)
from graft.models.families.base import Constructor, ModelFamily, usual_preprocessing

if TYPE_CHECKING:
    from torch import nn

    from graft.models.layouts import Stage
    from graft.models.recipe import Recipe


def vgg(
    name: str,
    *,
    num_classes: int,
    table: Sequence[int | str] | None = None,
    batch_norm: bool | None = None,
    classifier: str | None = None,
    dropout: float | None = None,
    input_size: int | None = None,
    average_pool: int | None = None,
    hidden: int | None = None,
) -> "nn.Module":
    """A VGG with a head for `num_classes` classes, initialised from torch's global generator.

    Args:
        name: one of `NETWORKS`, or any name where `table` is given; None below leaves the named network as it is.
        num_classes: length of the logits.
        table: channels of each 3x3 convolution, "M" for a 2x2 max-pool, from input to output.
        batch_norm: BatchNorm after each convolution.
        classifier: "vgg" (three linear layers), "linear" (one) or "pooled" (average pool, BatchNorm, one linear layer).
        dropout: probability, in [0, 1).
        input_size: side of the image, in pixels.
        average_pool: side of the adaptive average pool before the classifier; 0 for none.
        hidden: width of the two hidden linear layers of classifier="vgg".

    Raises:
        ConfigError: an unknown name, or options that disagree.
    """
    from graft.models.recipe import Recipe

    options = {"batch_norm": batch_norm, "classifier": classifier, "dropout": dropout, "input_size": input_size}
    options |= {"average_pool": average_pool, "hidden": hidden}
    recipe = Recipe(name, None if table is None else tuple(table), **options)  # type: ignore[arg-type]
    return FAMILY.build(recipe, num_classes)


def _row(letter: str, *, batch_norm: bool, **others: Any) -> Facts:
    """The row of a VGG for 224-pixel images; `others` are its differences."""
    table = TABLES[letter]
    usual = {"classifier": "vgg", "average_pool": 7, "table": table, "min_size": smallest_input(table)}
    return Facts(**{**usual, "batch_norm": batch_norm, **others})


TORCHVISION_VGGS: dict[str, tuple[str, bool]] = {
    "vgg11": ("A", False),
    "vgg11_bn": ("A", True),
    "vgg13": ("B", False),
    "vgg13_bn": ("B", True),
    "vgg16": ("D", False),
    "vgg16_bn": ("D", True),
    "vgg19": ("E", False),
    "vgg19_bn": ("E", True),
}
"""torchvision's name -> letter of the table, BatchNorm."""

FOR_CIFAR: dict[str, Any] = {"input_size": 32, "average_pool": 0, "mean": CIFAR_MEAN, "std": CIFAR_STD}

NETWORKS: dict[str, Facts] = {
    **{name: _row(letter, batch_norm=batch_norm) for name, (letter, batch_norm) in TORCHVISION_VGGS.items()},
    "vgg_custom": _row("custom", batch_norm=True),
    "vgg16_cifar": _row("cifar", batch_norm=False, **FOR_CIFAR),
    "vgg_mini": _row("mini", batch_norm=True, classifier="pooled", **FOR_CIFAR),
}

OPTIONS = ("table", "batch_norm", "classifier", "average_pool", "hidden", "dropout")
"""Options of a recipe that change a VGG built from a table, besides its input size."""


class Ours(ModelFamily):
    """VGGs with torchvision's names for their tensors; weights of torchvision fit those with its tables."""

    def facts(self, recipe: "Recipe") -> Facts:
        facts = NETWORKS.get(recipe.name, NETWORKS["vgg_custom"])
        changes = {key: value for key in (*OPTIONS, "input_size") if (value := getattr(recipe, key)) is not None}
        if recipe.table is not None:
            changes["table"] = checked_table(recipe.table)
            changes["min_size"] = smallest_input(changes["table"])
        facts = replace(facts, **changes)
        _check(facts)
        if recipe.average_pool is not None and facts.classifier == "pooled":
            raise ConfigError(
                f"model.average_pool={recipe.average_pool} and model.classifier=pooled disagree: "
                "pooled averages the whole map. Leave one of them out."
            )
        if recipe.hidden is not None and facts.classifier != "vgg":
            raise ConfigError(
                f"model.hidden={recipe.hidden} and model.classifier={facts.classifier} disagree: only classifier=vgg "
                "has hidden layers. Leave one of them out."
            )
        flattened = facts.table is not None and facts.classifier != "pooled" and not facts.average_pool
        return replace(facts, fixed_size=flattened)

    def torchvision_name(self, recipe: "Recipe") -> str | None:
        """A VGG is identified by its table, so `name: vgg16, batch_norm: true` has the weights of vgg16_bn."""
        facts = self.facts(recipe)
        for name, (letter, batch_norm) in TORCHVISION_VGGS.items():
            if (facts.table, facts.batch_norm) == (TABLES[letter], batch_norm):
                return name
        return None

    def bundled_weights(self, recipe: "Recipe") -> Path | None:
        file = BUNDLED / f"{recipe.name}.safetensors"
        return file if file.is_file() else None

    def known_preprocessing(self, recipe: "Recipe", weights: str | None) -> Preprocessing | None:
        """torchvision's weights of the VGGs expect the usual preprocessing."""
        return usual_preprocessing(self.facts(recipe)) if weights in (None, "default") else None

    def build(self, recipe: "Recipe", num_classes: int) -> "nn.Module":
        from graft.models.vgg import VGG

        facts = self.facts(recipe)
        assert facts.table is not None
        assert facts.classifier is not None
        return VGG(
            facts.table,
            num_classes=num_classes,
            batch_norm=bool(facts.batch_norm),
            classifier=facts.classifier,
            input_size=facts.input_size,
            average_pool=facts.average_pool,
            hidden=facts.hidden,
            dropout=facts.dropout,
            channels=recipe.channels or 3,
        )

    def constructor(self, recipe: "Recipe", network: "nn.Module", num_classes: int) -> Constructor:
        """torchvision's where it has a network with these very tensors."""
        from graft.models.families.torchvision import library_constructor

        if recipe.channels is None and (name := self.torchvision_name(recipe)) is not None:
            theirs = library_constructor(name, recipe.input_size, num_classes)
            if _shapes(theirs.make()) == _shapes(network):
                return theirs
        return super().constructor(recipe, network, num_classes)

    def head(self, network: "nn.Module") -> tuple[str, ...]:
        declared: tuple[str, ...] = network.head  # type: ignore[assignment]
        return declared

    def classifier(self, network: "nn.Module") -> tuple[str, ...]:
        return ("classifier",)

    def stages(self, network: "nn.Module") -> "list[Stage]":
        from graft.models.layouts import by_max_pool

        return by_max_pool(network, self.head(network))


def _shapes(network: "nn.Module") -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _check(facts: Facts) -> None:
    if facts.classifier is not None and facts.classifier not in CLASSIFIERS:
        raise ConfigError(
            f"model.classifier={facts.classifier}: unknown.{nearest(facts.classifier, CLASSIFIERS)} "
            f"There are {', '.join(CLASSIFIERS)}."
        )
    if facts.average_pool is not None and facts.average_pool < 0:
        raise ConfigError(f"model.average_pool={facts.average_pool}: must be 0 (none) or the side of the pooled map.")
    check_dropout_and_size(facts)


FAMILY = Ours()
