"""Pretrained weights: where they are, whether they fit, what they bring along.

A source is named as in `model.weights`: "default" (torchvision's), the name of another torchvision entry such
as "IMAGENET1K_FEATURES", "bundled" (ours), None (random), or a .pth, .pt, .ckpt or .safetensors file. Pickles
are read with `weights_only=True`: a file can hold tensors and plain values, never code."""

import contextlib
import difflib
import json
import pickle
import re
import socket
import sys
import urllib.error
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from graft import downloads
from graft.errors import NotAvailable, WeightsError
from graft.files import sha256
from graft.models.configurations import BUNDLED, known_models, nearest
from graft.models.heads import belongs, head_modules, top_modules
from graft.models.recipe import Recipe
from graft.models.zoo import todays_keys
from graft.preprocessing import Preprocessing

PREFIXES = ("network.", "_orig_mod.", "module.")
WRAPPERS = ("state_dict", "model")
IMAGENET_CLASSES = 1000
STALL_SECONDS = 60.0
SHOWN = 6


@dataclass(frozen=True)
class WeightsReport:
    """What became of a network's tensors.

    Attributes:
        source: where the weights came from: a file, "torchvision NAME.ENTRY", or "random".
        sha256: of the file, in hex; None where there is none.
        loaded: names of the parameters read from the source.
        random: names of the parameters left as they were drawn.
        preprocessing: what the weights expect of an image; None for random weights.
        classes: names of the classes their head tells apart, where known.
        notes: what a user should hear, one sentence each.
    """

    source: str
    sha256: str | None
    loaded: tuple[str, ...]
    random: tuple[str, ...]
    preprocessing: Preprocessing | None
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """A weight file read: its tensors, and what it says of itself."""

    name: str
    file: Path
    tensors: dict[str, Tensor]
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None


def load_weights(network: nn.Module, recipe: Recipe, weights: str | None, *, keep_head: bool = False) -> WeightsReport:
    """Read `weights` into `network`; half precision becomes the network's own.

    The trunk must be there whole. A file may lack everything above it (VGG16's convolutions alone, Inception
    without auxiliary head): that stays random and is reported. A VGG's classifier in the file is set aside
    when the recipe asks for another than the named network's own.

    Args:
        network: as `build_network(recipe, ...)` made it; changed in place, and only if all fits.
        recipe: its recipe.
        weights: the source, as in `model.weights`.
        keep_head: read the head too if its number of classes agrees; otherwise it stays as drawn.

    Returns:
        What was loaded from where, and what stayed random.

    Raises:
        WeightsError: no such weights, an unreadable or corrupted file (named), or one that does not fit (the
            keys are named).
        NotAvailable: weights to be downloaded that are neither here nor within reach.
    """
    parameters = [name for name, _ in network.named_parameters()]
    if weights is None:
        return WeightsReport("random", None, (), tuple(parameters), None, None)
    source = _read(recipe, weights)
    chosen, notes = _fit(network, recipe, source, keep_head)
    network.load_state_dict(chosen, strict=False)
    card = _card(recipe, source)
    return WeightsReport(
        source=source.name,
        sha256=sha256(source.file),
        loaded=tuple(name for name in parameters if name in chosen),
        random=tuple(name for name in parameters if name not in chosen),
        preprocessing=card.preprocessing,
        classes=card.classes,
        notes=tuple(notes),
    )


def locate_weights(recipe: Recipe, weights: str | None, *, timeout: float = 5.0) -> NotAvailable | None:
    """Whether `weights` can be had, answered within `timeout` seconds and without fetching them.

    Returns:
        None if they are on this machine or their address answers; else the error to raise, with the address
        and the file to put there by hand.

    Raises:
        WeightsError: there are no such weights, or no such file; no network would help.
    """
    if weights is None:
        return None
    entry = _torchvision_entry(recipe, weights)
    if entry is None:
        _existing_file(recipe, weights)
        return None
    place = _cached(entry)
    if place.exists():
        return None
    try:
        downloads.require_reachable(entry.url, what=_title(recipe, entry), place=str(place), timeout=timeout)
    except NotAvailable as error:
        return error
    return None


def default_preprocessing(recipe: Recipe, weights: str | None) -> Preprocessing:
    """What evaluation does to an image before this network with these weights.

    torchvision's weights bring their own, files of ours theirs; else it is ImageNet's mean and standard
    deviation (CIFAR-10's for the 32-pixel VGGs) at the network's input size, resized to 8/7 of it before the
    centre crop (224 from 256, 299 from 342) and without margin at 64 pixels or less. `recipe.input_size` goes
    before all.

    Raises:
        WeightsError: as `load_weights` for the source itself.
    """
    return _described(recipe, weights).preprocessing


def default_classes(recipe: Recipe, weights: str | None) -> tuple[str, ...] | None:
    """Names of the classes the head in `weights` tells apart; None where nobody knows.

    A file of 1,000 classes without names for a network of torchvision is taken to be ImageNet's.

    Raises:
        WeightsError: as `load_weights` for the source itself.
    """
    return _described(recipe, weights).classes


@dataclass(frozen=True)
class _Card:
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None


def _described(recipe: Recipe, weights: str | None) -> _Card:
    if weights is None:
        return _Card(recipe.usual_preprocessing(), None)
    entry = _torchvision_entry(recipe, weights)
    if entry is not None:
        described = _Source(entry.name, _cached(entry), {}, _entry_preprocessing(entry), _entry_classes(entry))
        return _card(recipe, described)
    return _card(recipe, _read(recipe, weights))


def _card(recipe: Recipe, source: _Source) -> _Card:
    preprocessing = source.preprocessing or recipe.usual_preprocessing()
    if recipe.input_size not in (None, preprocessing.input_size):
        size = recipe.facts().input_size
        margin = preprocessing.resize_size / preprocessing.input_size
        preprocessing = replace(preprocessing, input_size=size, resize_size=round(size * margin))
    classes = source.classes
    if classes is None and recipe.torchvision_name() and _is_imagenet_head(source.tensors):
        classes = tuple(torchvision.models.AlexNet_Weights.DEFAULT.meta["categories"])
    return _Card(preprocessing, classes)


def _is_imagenet_head(tensors: Mapping[str, Tensor]) -> bool:
    heads = (
        "classifier.6.bias",
        "classifier.1.bias",
        "classifier.bias",
        "fc.bias",
        "heads.head.bias",
        "head.bias",
    )
    return any(key in tensors and len(tensors[key]) == IMAGENET_CLASSES for key in heads)


# Where weights are


def _torchvision_entry(recipe: Recipe, weights: str) -> WeightsEnum | None:
    """torchvision's entry if `weights` names one, None if it is a file or ours.

    Raises:
        WeightsError: "default" for a network torchvision has no weights of.
    """
    name = recipe.torchvision_name()
    if name is None:
        if weights == "default":
            raise WeightsError(
                f"model.weights=default: torchvision has no weights for {recipe.name} with this table. "
                "Train it from random weights (strategy=scratch), or name a file: model.weights=FILE."
            )
        return None
    entries = torchvision.models.get_model_weights(name)
    if weights == "default":
        return entries.DEFAULT
    return entries.__members__.get(weights)


def _existing_file(recipe: Recipe, weights: str) -> Path:
    """The file that `weights` names.

    Raises:
        WeightsError: it is not there; names the nearest in its folder, or the networks that have bundled
            weights.
    """
    if weights == "bundled":
        file = BUNDLED / f"{recipe.name}.safetensors"
        if not file.is_file():
            bundled = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.safetensors"))) or "no network"
            raise WeightsError(
                f"model.weights=bundled: Graft has no weights for model={recipe.name}; it has for {bundled}."
            )
        return file
    file = Path(weights).expanduser()
    if not file.is_file():
        reason = "is a folder" if file.is_dir() else "no such file"
        neighbours = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
        words = ["default", "bundled", *(neighbours if file.name != weights or neighbours else [])]
        raise WeightsError(
            f"model.weights={weights}: {reason}.{nearest(file.name, words)} "
            "It is default, bundled, null, or a .pth, .safetensors or .ckpt file."
        )
    return file


def _cached(entry: WeightsEnum) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name


def _title(recipe: Recipe, entry: WeightsEnum) -> str:
    return f"ImageNet weights of {recipe.torchvision_name()} ({entry.name})"


# Reading


def _read(recipe: Recipe, weights: str) -> _Source:
    entry = _torchvision_entry(recipe, weights)
    if entry is not None:
        return _Source(
            name=f"torchvision {recipe.torchvision_name()} {entry.name}",
            file=_cached(entry),
            tensors=_fetch(recipe, entry),
            preprocessing=_entry_preprocessing(entry),
            classes=_entry_classes(entry),
        )
    file = _existing_file(recipe, weights)
    source = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    known = _entry_of_file(recipe, file)
    return source if known is None else replace(source, preprocessing=_entry_preprocessing(known))


def _entry_of_file(recipe: Recipe, file: Path) -> WeightsEnum | None:
    """The torchvision entry that `file` is a copy of, told by its name (which holds its hash)."""
    name = recipe.torchvision_name()
    entries: Iterable[WeightsEnum] = torchvision.models.get_model_weights(name) if name else ()
    return next((entry for entry in entries if _cached(entry).name == file.name), None)


def _entry_preprocessing(entry: WeightsEnum) -> Preprocessing:
    transforms = entry.transforms()
    return Preprocessing(
        input_size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def _entry_classes(entry: WeightsEnum) -> tuple[str, ...] | None:
    return tuple(entry.meta["categories"] or ()) or None


def _fetch(recipe: Recipe, entry: WeightsEnum) -> dict[str, Tensor]:
    """torchvision's own download with its hash check; one process at a time, the others find the file."""
    place = _cached(entry)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with downloads.locked(place):
            if not place.exists():
                downloads.require_reachable(entry.url, what=_title(recipe, entry), place=str(place))
                _download(recipe, entry, place)
    expected = place.stem.rpartition("-")[2]
    if not sha256(place).startswith(expected):
        raise WeightsError(
            f"{place}: its SHA-256 does not begin with {expected} as its name promises; the file is damaged. "
            "Delete it, and the next run fetches it again."
        )
    return _tensors_of(_unpickled(place), place)


def _download(recipe: Recipe, entry: WeightsEnum, place: Path) -> None:
    try:
        with contextlib.redirect_stdout(sys.stderr), _stalls_end():
            entry.get_state_dict(check_hash=True, progress=sys.stderr.isatty(), map_location="cpu", weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        raise NotAvailable(_title(recipe, entry), entry.url, str(place), str(error)) from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{entry.url}: what came is not what its name promises ({_line(error)}).") from error


@contextlib.contextmanager
def _stalls_end() -> Iterator[None]:
    """A connection that says nothing for a minute is given up; torch.hub itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_safetensors(file: Path) -> _Source:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, _line(error)) from error
    described = {key: _parsed(metadata.get(key)) for key in ("preprocessing", "classes")}
    return _described_source(file, tensors, described)


def _read_pickle(file: Path) -> _Source:
    content = _unpickled(file)
    described = content.get("graft", {}) if isinstance(content, Mapping) else {}
    return _described_source(file, _tensors_of(content, file), described if isinstance(described, Mapping) else {})


def _described_source(file: Path, tensors: dict[str, Tensor], described: Mapping[str, Any]) -> _Source:
    preprocessing, classes = described.get("preprocessing"), described.get("classes")
    return _Source(
        name=str(file),
        file=file,
        tensors=tensors,
        preprocessing=Preprocessing.from_dict(preprocessing) if isinstance(preprocessing, Mapping) else None,
        classes=tuple(classes) if isinstance(classes, list | tuple) else None,
    )


def _parsed(text: str | None) -> Any:
    """JSON's value, or None for the free text that other people's files hold."""
    try:
        return json.loads(text) if text else None
    except json.JSONDecodeError:
        return None


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden is None:
            raise _damaged(file, "its pickle makes no sense") from error
        raise WeightsError(
            f"{file}: refused, because it holds more than tensors and plain values ({forbidden[1]}) and "
            "could run code. Save the network's state_dict() alone, or convert it to .safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise _damaged(file, _line(error)) from error


def _tensors_of(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict in a file, be it alone, in a checkpoint, or under the prefixes that wrappers add."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{file}: holds no state dict (a mapping from names to tensors).")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if any(key.startswith("network.") for key in tensors):
        tensors = {key: value for key, value in tensors.items() if key.startswith("network.")}
    return {_bare(key): value for key, value in tensors.items()}


def _bare(key: str) -> str:
    while (prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)) is not None:
        key = key.removeprefix(prefix)
    return key


def _damaged(file: Path, reason: str) -> WeightsError:
    return WeightsError(f"{file}: cannot be read, it is damaged or no weight file ({reason}). Fetch it again.")


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


# Fitting


def _fit(network: nn.Module, recipe: Recipe, source: _Source, keep_head: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of `source` to load into `network`, and what is to be said about the rest.

    Raises:
        WeightsError: a trunk's tensor is missing, not finite or of another shape, or one is unknown.
    """
    wanted = network.state_dict()
    top, head = top_modules(network), head_modules(network)
    found = todays_keys(network, source.tensors)
    notes: list[str] = []

    hollow = {key for key, value in found.items() if value.is_floating_point() and not torch.isfinite(value).all()}
    if broken := sorted(key for key in hollow if not belongs(key, top)):
        raise WeightsError(f"{source.name}: NaN or infinity in {_listed(broken)}.")
    found = {key: value for key, value in found.items() if key not in hollow}

    if _another_classifier(wanted, found, top, head) and _chose_classifier(recipe):
        found = {key: value for key, value in found.items() if not belongs(key, top)}
        notes.append("The file's classifier is not the one chosen for this network: only its trunk is loaded.")

    theirs = {key: value for key, value in found.items() if belongs(key, head)}
    fits = theirs and all(key in wanted and value.shape == wanted[key].shape for key, value in theirs.items())
    if not (keep_head and fits):
        found = {key: value for key, value in found.items() if key not in theirs}
    if keep_head and not fits:
        notes.append(f"The head stays random: {_why_not(theirs)}.")

    absent = [module for module in top if not any(belongs(key, (module,)) for key in found)]
    required = [key for key in wanted if not key.endswith("num_batches_tracked") and not belongs(key, absent)]
    _demand_fit(source.name, recipe, wanted, required, found)

    bare = dict.fromkeys(key.rpartition(".")[0] for key in wanted if belongs(key, absent) and not belongs(key, head))
    if bare:
        notes.append(f"{_listed(bare)} {'stay' if len(bare) > 1 else 'stays'} random: not in the file.")
    return found, notes


def _why_not(head: Mapping[str, Tensor]) -> str:
    rows = [len(value) for value in head.values() if value.ndim]
    return f"the file's has {rows[-1]} classes" if rows else "the file has none"


def _another_classifier(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], top: tuple[str, ...], head: tuple[str, ...]
) -> bool:
    """Whether the file's layers between trunk and head are other than the network's."""
    body = {key: tuple(value.shape) for key, value in wanted.items() if belongs(key, top) and not belongs(key, head)}
    theirs = {key: tuple(value.shape) for key, value in found.items() if belongs(key, top) and not belongs(key, head)}
    heads = {key for key in found if belongs(key, head)}
    return bool(theirs or heads) and (
        body != theirs or any(wanted[key].shape[1:] != found[key].shape[1:] for key in heads if key in wanted)
    )


def _chose_classifier(recipe: Recipe) -> bool:
    """Whether the recipe departs from its network in what shapes the classifier."""
    return any(value is not None for value in (recipe.classifier, recipe.average_pool, recipe.input_size))


def _demand_fit(
    name: str,
    recipe: Recipe,
    wanted: Mapping[str, Tensor],
    required: Collection[str],
    found: Mapping[str, Tensor],
) -> None:
    missing = [key for key in required if key not in found]
    unknown = sorted((key for key in found if key not in wanted), key=_natural)
    misshapen = [
        f"{key} {list(found[key].shape)}, not {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    if not (missing or unknown or misshapen):
        return
    complaints = [
        f"missing: {_listed(missing)}" if missing else "",
        f"not in the network: {_listed(unknown)}{_likeness(unknown, missing)}" if unknown else "",
        f"another shape: {_listed(misshapen)}" if misshapen else "",
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
    """For a single stray name: the missing one it looks like."""
    close = difflib.get_close_matches(next(iter(unknown)), list(missing), n=1)
    return f" (is it {close[0]}?)" if len(unknown) == 1 and close else ""


def _guess(name: str) -> str:
    """The network that a file's own name begins with."""
    stem = Path(name).name
    named = [model for model in known_models() if stem.startswith(model)]
    return f" (by its name, {max(named, key=len)})" if named else ""


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
