"""Matching the tensors of a weight file to those of a network."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from graft.errors import WeightsError, listed
from graft.models.heads import head_modules, top_modules
from graft.models.layouts import belongs
from graft.models.recipe import Recipe
from graft.models.registry import family_of, known_models
from graft.models.weights.reading import Source

SHOWN = 6


def fit(
    network: nn.Module, recipe: Recipe, source: Source, keep_head: bool, first_conv: str = "mean"
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of `source` to load into `network`, and notes for the user about the rest.

    Args:
        network: that they are for.
        recipe: of the network.
        source: the weights.
        keep_head: load the head too, if it fits.
        first_conv: how the first convolution becomes one for another number of channels, see `adapted`.

    Raises:
        WeightsError: a trunk's tensor is missing, not finite or of another shape, or one is unknown.
    """
    expected = network.state_dict()
    top, head = top_modules(network), head_modules(network)
    found = family_of(recipe).convert(network, recipe, source.tensors)
    resized = [key for key, value in found.items() if source.tensors.get(key, value).shape != value.shape]
    notes = [f"Interpolated for this image size: {listed(resized, SHOWN)}."] if resized else []

    hollow = {key for key, value in found.items() if value.is_floating_point() and not torch.isfinite(value).all()}
    if broken := sorted(key for key in hollow if not belongs(key, top)):
        raise WeightsError(f"{source.name}: NaN or infinity in {listed(broken, SHOWN)}.")
    found = {key: value for key, value in found.items() if key not in hollow}

    found, left_random, adapting = _with_channels(family_of(recipe).first_conv(network), expected, found, first_conv)
    notes += adapting

    if _another_classifier(expected, found, top, head) and _chose_classifier(recipe):
        found = {key: value for key, value in found.items() if not belongs(key, top)}
        notes.append("The file's classifier is not the one configured for this network: only its trunk is loaded.")

    theirs = {key: value for key, value in found.items() if belongs(key, head)}
    fits = theirs and all(key in expected and value.shape == expected[key].shape for key, value in theirs.items())
    if not (keep_head and fits):
        found = {key: value for key, value in found.items() if key not in theirs}
    if keep_head and not fits:
        notes.append(f"The head stays random: {_why_not(theirs)}.")

    absent = [module for module in top if not any(belongs(key, (module,)) for key in found)] + left_random
    required = [key for key in expected if not key.endswith("num_batches_tracked") and not belongs(key, absent)]
    _require_fit(source.name, recipe, expected, required, found)

    apart = (*head, *left_random)
    bare = dict.fromkeys(key.rpartition(".")[0] for key in expected if belongs(key, absent) and not belongs(key, apart))
    if bare:
        notes.append(f"{listed(bare, SHOWN)} {'stay' if len(bare) > 1 else 'stays'} random: not in the file.")
    return found, notes


def adapted(weight: Tensor, channels: int, how: str) -> Tensor:
    """The weight of a convolution [O, I, H, W] for inputs of another number of channels: [O, channels, H, W].

    The sum over the channels keeps its size. For one channel it is the sum itself: the layer computes from a grey image
    what it did from that image repeated.

    Args:
        weight: for I channels.
        channels: the other number.
        how: "mean" gives each channel the mean over the I; "repeat" repeats the I in their order; "keep" gives them to
            the first I channels, and 0 to the others.
    """
    if how == "keep":
        return torch.cat([weight, weight.new_zeros(len(weight), channels - weight.shape[1], *weight.shape[2:])], 1)
    if how == "repeat" and channels > 1:
        repeated = weight.repeat(1, -(-channels // weight.shape[1]), 1, 1)[:, :channels].float()
    else:
        repeated = weight.float().mean(1, keepdim=True).repeat(1, channels, 1, 1)
    return (repeated * (weight.shape[1] / channels)).to(weight.dtype)


def _with_channels(
    first_conv: str | None, expected: Mapping[str, Tensor], found: dict[str, Tensor], how: str
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """(`found` with its first convolution made for the network's channels, names of modules left random, notes)."""
    key = f"{first_conv}.weight"
    theirs, own = found.get(key), expected.get(key)
    if theirs is None or own is None or theirs.ndim != 4 or theirs.shape == own.shape:
        return found, [], []
    if theirs.shape[:1] + theirs.shape[2:] != own.shape[:1] + own.shape[2:]:
        return found, [], []
    before, after = theirs.shape[1], own.shape[1]
    if how == "keep" and after < before:
        raise WeightsError(
            f"model.first_conv=keep: the images have {after} channels, fewer than the {before} of the weights.\n"
            "Use model.first_conv=mean."
        )
    change = f"for {after} instead of {before} channels (model.first_conv={how})"
    if how == "random":
        kept = {name: value for name, value in found.items() if not belongs(name, (str(first_conv),))}
        return kept, [str(first_conv)], [f"The first convolution, {first_conv}, stays random {change}."]
    note = f"The first convolution, {first_conv}, is adapted {change}."
    return found | {key: adapted(theirs, after, how)}, [], [note]


def _why_not(head: Mapping[str, Tensor]) -> str:
    rows = [len(value) for value in head.values() if value.ndim]
    return f"the file's has {rows[-1]} classes" if rows else "the file has none"


def _another_classifier(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], top: tuple[str, ...], head: tuple[str, ...]
) -> bool:
    """Whether the file's layers between trunk and head differ from the network's."""
    body = {key: tuple(value.shape) for key, value in expected.items() if belongs(key, top) and not belongs(key, head)}
    theirs = {key: tuple(value.shape) for key, value in found.items() if belongs(key, top) and not belongs(key, head)}
    heads = {key for key in found if belongs(key, head)}
    return bool(theirs or heads) and (
        body != theirs or any(expected[key].shape[1:] != found[key].shape[1:] for key in heads if key in expected)
    )


def _chose_classifier(recipe: Recipe) -> bool:
    """Whether the recipe sets an option that changes the shape of the classifier."""
    chosen = (recipe.classifier, recipe.average_pool, recipe.hidden, recipe.input_size)
    return any(value is not None for value in chosen)


def _require_fit(
    name: str,
    recipe: Recipe,
    expected: Mapping[str, Tensor],
    required: Collection[str],
    found: Mapping[str, Tensor],
) -> None:
    missing = [key for key in required if key not in found]
    unknown = sorted((key for key in found if key not in expected), key=_natural)
    misshapen = [
        f"{key} {list(found[key].shape)}, not {list(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    if not (missing or unknown or misshapen):
        return
    complaints = [
        f"missing: {listed(missing, SHOWN)}" if missing else "",
        f"not in the network: {listed(unknown, SHOWN)}{_likeness(unknown, missing)}" if unknown else "",
        f"another shape: {listed(misshapen, SHOWN)}" if misshapen else "",
    ]
    raise WeightsError(
        f"model.weights={name} does not fit model={recipe.name}.\n  "
        + "\n  ".join(filter(None, complaints))
        + f"\nChoose the network these weights are of{_guess(name)}, or other weights."
    )


def _natural(key: str) -> list[tuple[bool, int, str]]:
    """Sorts features.2 before features.10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in key.split(".")]


def _likeness(unknown: Collection[str], missing: Collection[str]) -> str:
    """For a single unknown name: the missing one that it resembles."""
    close = difflib.get_close_matches(next(iter(unknown)), list(missing), n=1)
    return f" (is it {close[0]}?)" if len(unknown) == 1 and close else ""


def _guess(name: str) -> str:
    """The network whose name a file's name starts with."""
    stem = Path(name).name
    named = [model for model in known_models() if stem.startswith(model)]
    return f" (by its name, {max(named, key=len)})" if named else ""
