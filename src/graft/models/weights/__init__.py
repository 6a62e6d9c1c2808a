"""Pretrained weights: finding them, checking that they fit, loading them with their preprocessing and classes.

A source is named as in `model.weights`: "default" (torchvision's or timm's), another torchvision entry such as
"IMAGENET1K_FEATURES", "bundled" (Graft's), None (random), "hf://ORG/NAME" (a repository of the Hugging Face hub, or a
folder like one), or a .pth, .pt, .ckpt or .safetensors file. Pickles
are read with `weights_only=True`: a file contains tensors and plain values, never code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, NotAvailable, listed
from graft.models.families.base import at_input_size
from graft.models.recipe import Recipe
from graft.models.registry import family_of
from graft.models.weights.finding import existing_file, find_published
from graft.models.weights.fitting import SHOWN, fit
from graft.models.weights.grafting import describe_origins, graft_head, origins_by_name
from graft.models.weights.hugging_face import on_hub
from graft.models.weights.keeping import describe_unused_head, difference, require_same_head
from graft.models.weights.reading import Source, read_file
from graft.system.files import sha256

__all__ = [
    "WeightsReport",
    "default_classes",
    "default_preprocessing",
    "load_weights",
    "locate_weights",
    "sized_by_weights",
]


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors of a network were loaded, and from where.

    Attributes:
        source: where the weights came from: a file, "torchvision NAME.ENTRY", or "random".
        sha256: of the file, in hex; None where there is none.
        loaded: names of the parameters read from the source.
        random: names of the parameters that stay randomly initialised.
        preprocessing: of the images that the weights were trained on; None for random weights.
        classes: names of the classes of their head, where known.
        notes: for the user, one sentence each.
        decisions: task and thresholds that a file of Graft records, as unchecked values.
    """

    source: str
    sha256: str | None
    loaded: tuple[str, ...]
    random: tuple[str, ...]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    decisions: Mapping[str, Any] = field(default_factory=dict)


def load_weights(
    network: nn.Module,
    recipe: Recipe,
    weights: str | None,
    *,
    keep_head: bool = False,
    classes: Sequence[str] = (),
    head_from: Mapping[Any, Any] | None = None,
    names: Sequence[str] | None = None,
    first_conv: str = "mean",
) -> WeightsReport:
    """Load `weights` into `network`, converted to the network's precision.

    The trunk must be complete. A file may lack everything above it (VGG16's convolutions alone, Inception
    without auxiliary head): those layers stay random and are reported. A VGG's classifier in the file is ignored
    when the recipe asks for another than the named network's own.

    Args:
        network: as `build_network(recipe, ...)` made it; changed in place, and only if all fits.
        recipe: its recipe.
        weights: the source, as in `model.weights`.
        keep_head: load the head too. With `classes`, it must be of these classes in this order; without, it stays
            random if its number of classes differs.
        classes: names of the network's classes, for `keep_head` and `head_from`.
        head_from: class → the class or classes of the weights whose rows initialise its own (see `graft_head`).
        names: names of the classes of the weights (`model.classes`); None: as the weights name them.
        first_conv: how the first convolution is adapted to another number of channels: "mean", "repeat", "keep" or
            "random", see `fitting.adapted`.

    Returns:
        What was loaded from where, and what stayed random.

    Raises:
        WeightsError: no such weights, an unreadable or corrupted file, or one that does not fit; names the file
            and the keys. A head that is to be kept is of other classes.
        ConfigError: `head_from` names a class that does not exist, or `names` are not those of the weights.
        NotAvailable: published weights that are not on this machine and cannot be downloaded.
    """
    parameters = [name for name, _ in network.named_parameters()]
    if weights is None:
        return WeightsReport("random", None, (), tuple(parameters), None, None)
    source = _read(recipe, weights)
    chosen, notes = fit(network, recipe, source, keep_head, first_conv)
    if source.ignored:
        notes.append(f"Ignored, because they are not in the network: {listed(source.ignored, SHOWN)}.")
    card = _card(recipe, source, names)
    loaded = set(chosen)
    if keep_head and classes:
        require_same_head(network, source.name, chosen, card.classes, classes)
    elif not keep_head and not head_from and find_published(recipe, weights) is None and weights != "bundled":
        converted = family_of(recipe).convert(network, recipe, source.tensors)
        notes += describe_unused_head(network, source.name, converted, card.classes, classes)
    if head_from:
        origins = origins_by_name(head_from)
        head = graft_head(
            network, family_of(recipe).convert(network, recipe, source.tensors), card.classes, classes, origins
        )
        chosen, notes = chosen | head, [*notes, describe_origins(classes, origins)]
        loaded |= set(head) if len(origins) == len(classes) else set()
    network.load_state_dict(chosen, strict=False)
    return WeightsReport(
        source=source.name,
        sha256=sha256(source.file),
        loaded=tuple(name for name in parameters if name in loaded),
        random=tuple(name for name in parameters if name not in loaded),
        preprocessing=card.preprocessing,
        classes=card.classes,
        notes=tuple(notes),
        decisions=source.decisions,
    )


def locate_weights(recipe: Recipe, weights: str | None) -> NotAvailable | None:
    """Whether `weights` can be loaded, answered within `download.timeout` seconds and without downloading them.

    Returns:
        None if they are on this machine or their URL answers; else the error to raise, with the URL and the path
        for a manual download.

    Raises:
        WeightsError: there are no such weights or there is no such file, online or not.
    """
    if weights is None:
        return None
    published = find_published(recipe, weights)
    address = on_hub(weights) if published is None else published.address
    if address is None:
        existing_file(recipe, weights)
    elif address.local_copy() is None:
        try:
            address.require_reachable(f"weights {weights}" if published is None else published.title)
        except NotAvailable as error:
            return error
    return None


def default_preprocessing(recipe: Recipe, weights: str | None) -> Preprocessing:
    """What evaluation does to an image before this network with these weights.

    Published weights and Graft's own files define it. Without it, timm's networks have timm's, custom networks what
    they declare, and all others ImageNet's mean and standard deviation (CIFAR-10's for the 32-pixel VGGs) at the
    network's input size, resized to 8/7 of it before the centre crop (224 from 256, 299 from 342), without a margin at
    64 pixels or less. `recipe.input_size` overrides the size in each case.

    Raises:
        WeightsError: as `load_weights` for the source itself.
    """
    return _described(recipe, weights).preprocessing


def sized_by_weights(recipe: Recipe, weights: str | None) -> Recipe:
    """`recipe` with the input size that `weights` were made for, where it does not set one.

    A network with position embeddings has a fixed input size, which may depend on the weights: vit_h_14's are for 518
    pixels.

    Raises:
        WeightsError: as `load_weights` for the source itself.
    """
    family = family_of(recipe)
    if weights is None or recipe.input_size is not None or not family.resized_by_weights:
        return recipe
    side = family.fixed_input_size(recipe)
    if side is None:
        return recipe
    size = default_preprocessing(recipe, weights).input_size
    return replace(recipe, input_size=size) if isinstance(size, int) and size != side else recipe


def default_classes(recipe: Recipe, weights: str | None, names: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """Names of the classes of the head in `weights`; `names` where it does not name them, None where they are unknown.

    A file of 1,000 classes without names, for a network of torchvision or timm, is assumed to be ImageNet's; one with
    the number of classes of a larger ImageNet that timm knows is assumed to be that.

    Raises:
        WeightsError: as `load_weights` for the source itself.
        ConfigError: the weights have other names.
    """
    return _described(recipe, weights, names).classes


@dataclass(frozen=True)
class _Card:
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None


def _described(recipe: Recipe, weights: str | None, names: Sequence[str] | None = None) -> _Card:
    published = None if weights is None else find_published(recipe, weights)
    if published is not None:
        preprocessing = at_input_size(published.preprocessing, recipe.input_size)
        return _Card(preprocessing, _named(published.name, published.classes, names))
    if weights is None:
        return _Card(family_of(recipe).preprocessing(recipe), None)
    return _card(recipe, _read(recipe, weights), names)


def _card(recipe: Recipe, source: Source, names: Sequence[str] | None = None) -> _Card:
    family, own = family_of(recipe), source.preprocessing
    classes = _named(source.name, source.classes, names) or family.classes_of_head(recipe, source.tensors)
    return _Card(family.preprocessing(recipe) if own is None else at_input_size(own, recipe.input_size), classes)


def _named(source: str, known: Sequence[str] | None, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of the weights' classes, which `model.classes` must not contradict."""
    if known is not None and names is not None and tuple(known) != tuple(names):
        raise ConfigError(
            f"model.classes and {source} disagree: {difference(known, names, 'the weights', 'model.classes')}.\n"
            "Leave model.classes out: the weights name their classes."
        )
    found = known if names is None else names
    return None if found is None else tuple(found)


def _read(recipe: Recipe, weights: str) -> Source:
    published = find_published(recipe, weights)
    if published is not None:
        source = read_file(published.address.fetch(published.title))
        return replace(source, name=published.name, preprocessing=published.preprocessing, classes=published.classes)
    file = existing_file(recipe, weights)
    source = read_file(file)
    known = family_of(recipe).preprocessing_of_file(recipe, file)
    return source if known is None else replace(source, preprocessing=known)
