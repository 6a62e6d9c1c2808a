"""Where weights are: torchvision's entries and its cache, what is bundled, files; and what is fetched."""

import contextlib
import pickle
import socket
import sys
import urllib.error
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision
from torchvision.models import WeightsEnum

from graft import downloads
from graft.errors import NotAvailable, WeightsError
from graft.files import sha256
from graft.models.configurations import BUNDLED, nearest
from graft.models.recipe import Recipe
from graft.models.weights.reading import first_line
from graft.preprocessing import Preprocessing

STALL_SECONDS = 60.0


def find_entry(recipe: Recipe, weights: str) -> WeightsEnum | None:
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


def existing_file(recipe: Recipe, weights: str) -> Path:
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


def place_of(entry: WeightsEnum) -> Path:
    """Where torch.hub keeps the file of `entry`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name


def title_of(recipe: Recipe, entry: WeightsEnum) -> str:
    """`entry` in the user's words."""
    return f"ImageNet weights of {recipe.torchvision_name()} ({entry.name})"


def entry_of_file(recipe: Recipe, file: Path) -> WeightsEnum | None:
    """The torchvision entry that `file` is a copy of, told by its name (which holds its hash)."""
    name = recipe.torchvision_name()
    entries: Iterable[WeightsEnum] = torchvision.models.get_model_weights(name) if name else ()
    return next((entry for entry in entries if place_of(entry).name == file.name), None)


def entry_preprocessing(entry: WeightsEnum) -> Preprocessing:
    """What `entry` expects of an image."""
    transforms = entry.transforms()
    return Preprocessing(
        input_size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def entry_classes(entry: WeightsEnum) -> tuple[str, ...] | None:
    """Names of the classes that `entry` tells apart; None for a trunk alone."""
    return tuple(entry.meta["categories"] or ()) or None


def fetch(recipe: Recipe, entry: WeightsEnum) -> Path:
    """The file of `entry`, downloaded by torchvision where it is not here yet; one process at a time does so.

    Raises:
        NotAvailable: it is neither here nor within reach.
        WeightsError: it has not the hash that its name promises.
    """
    place = place_of(entry)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with downloads.locked(place):
            if not place.exists():
                downloads.require_reachable(entry.url, what=title_of(recipe, entry), place=str(place))
                _download(recipe, entry, place)
    expected = place.stem.rpartition("-")[2]
    if not sha256(place).startswith(expected):
        raise WeightsError(
            f"{place}: its SHA-256 does not begin with {expected} as its name promises; the file is damaged. "
            "Delete it, and the next run fetches it again."
        )
    return place


def _download(recipe: Recipe, entry: WeightsEnum, place: Path) -> None:
    try:
        with contextlib.redirect_stdout(sys.stderr), _stalls_end():
            entry.get_state_dict(check_hash=True, progress=sys.stderr.isatty(), map_location="cpu", weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        raise NotAvailable(title_of(recipe, entry), entry.url, str(place), str(error)) from error
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{entry.url}: what came is not what its name promises ({first_line(error)}).") from error


@contextlib.contextmanager
def _stalls_end() -> Iterator[None]:
    """A connection that says nothing for a minute is given up; torch.hub itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
