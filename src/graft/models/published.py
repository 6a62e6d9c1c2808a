"""Weights that a library publishes: where they are kept, whether they are within reach, and how they come here.

Imports no torch, so that a missing network is reported before anything heavy is loaded.
"""

import ast
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

from graft.data.preprocessing import Preprocessing
from graft.errors import DataError, WeightsError
from graft.system import downloads
from graft.system.files import sha256

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")
"""The beginning of a file's SHA-256, as torch.hub has it in a name: vgg16-397923af.pth."""


class Address(Protocol):
    """Where a file is published and where its copy is kept."""

    @property
    def url(self) -> str: ...

    @property
    def place(self) -> Path:
        """The file to put there by hand."""

    def here(self) -> Path | None:
        """The copy on this machine, if there is one."""

    def require_reachable(self, what: str) -> None:
        """Raise NotAvailable, within `download.timeout` seconds, unless `what` can be fetched."""

    def fetch(self, what: str) -> Path:
        """The file, downloaded where it is not here yet; one process at a time does so, the others wait.

        Raises:
            NotAvailable: neither here nor within reach.
            WeightsError: what came, or lies here, has not the publisher's checksum; the disk is full.
        """


@dataclass(frozen=True)
class Published:
    """Weights of a library, described before they are fetched.

    Attributes:
        name: library, network and entry: "torchvision vgg16 IMAGENET1K_V1", "timm resnet50.a1_in1k".
        title: in the user's words.
        address: where they are.
        preprocessing: what they expect of an image.
        classes: names of the classes their head tells apart; None for a trunk alone, or where nobody knows.
    """

    name: str
    title: str
    address: Address
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class TorchHub:
    """A file at any address, kept in torch.hub's cache under its own name."""

    url: str

    @property
    def place(self) -> Path:
        return _hub_dir() / "checkpoints" / Path(urlparse(self.url).path).name

    def here(self) -> Path | None:
        return self.place if self.place.exists() else None

    def require_reachable(self, what: str) -> None:
        downloads.require_reachable(self.url, what=what, place=str(self.place))

    def fetch(self, what: str) -> Path:
        promised = HASH_IN_NAME.search(self.place.name)
        beginning = promised[1] if promised else ""
        if self.here() is None:
            self.require_reachable(what)
            try:
                downloads.download(self.url, self.place, what=what, sha256=beginning)
            except DataError as error:
                raise WeightsError(str(error)) from error
        demand_hash(self.place, beginning)
        return self.place


def demand_hash(file: Path, beginning: str) -> None:
    """Raise WeightsError unless the SHA-256 of `file` begins so, as its name promises."""
    if not sha256(file).startswith(beginning):
        raise WeightsError(
            f"{file}: its SHA-256 does not begin with {beginning} as its name promises; the file is damaged. "
            "Delete it, and the next run fetches it again."
        )


def torchvision_address(network: str, entry: str) -> TorchHub | None:
    """Where torchvision publishes weights, without importing it; None where that is unknown.

    Args:
        network: a name of torchvision's, e.g. "vgg16".
        entry: "default" or the name of an entry, e.g. "IMAGENET1K_V1".
    """
    url = _torchvision_entries(network).get("DEFAULT" if entry == "default" else entry)
    return None if url is None else TorchHub(url)


def _hub_dir() -> Path:
    """`torch.hub.get_dir()`, by the same environment variables where torch is not imported."""
    if "torch" in sys.modules:
        return Path(sys.modules["torch"].hub.get_dir())
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache_home, "torch"))).expanduser() / "hub"


@cache
def _torchvision_entries(network: str) -> dict[str, str]:
    """The entries of the weights of `network` with their addresses, read from the source text of torchvision.models."""
    spec = importlib.util.find_spec("torchvision")
    folders = [Path(folder) / "models" for folder in (spec.submodule_search_locations or ())] if spec else []
    texts = (file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py")))
    text = next((text for text in texts if f"\ndef {network}(" in text), "")
    enum = re.search(rf"\ndef {re.escape(network)}\(.*?(\w+_Weights)\b", text, re.DOTALL)
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return next((_urls(node) for node in classes if enum is not None and node.name == enum[1]), {})


def _urls(enum: ast.ClassDef) -> dict[str, str]:
    """The entries of an enumeration of weights, `V1 = Weights(url="…")` and `DEFAULT = V1`, with their addresses."""
    urls: dict[str, str] = {}
    for line in enum.body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(keywords=keywords)):
                for keyword in keywords:
                    if keyword.arg == "url" and isinstance(keyword.value, ast.Constant):
                        urls[name] = str(keyword.value.value)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=other)) if other in urls:
                urls[name] = urls[other]
    return urls
