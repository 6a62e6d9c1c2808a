"""Weights that a library publishes: their address, their local copy, and whether they can be downloaded.

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
"""The first digits of a file's SHA-256, as torch.hub has them in its name: vgg16-397923af.pth."""


class Address(Protocol):
    """Where a file is published and where its local copy is."""

    @property
    def url(self) -> str: ...

    @property
    def path(self) -> Path:
        """Path for a copy that the user downloads manually."""

    def local_copy(self) -> Path | None:
        """The copy on this machine, if there is one."""

    def require_reachable(self, what: str) -> None:
        """Raise NotAvailable, within `download.timeout` seconds, unless `what` can be downloaded."""

    def fetch(self, what: str) -> Path:
        """The local copy, downloaded first if there is none; one process at a time downloads, the others wait.

        Raises:
            NotAvailable: there is no local copy, and it cannot be downloaded.
            WeightsError: the file does not have the publisher's checksum, or the disk is full.
        """


@dataclass(frozen=True)
class Published:
    """Weights of a library, described before they are downloaded.

    Attributes:
        name: library, network and entry: "torchvision vgg16 IMAGENET1K_V1", "timm resnet50.a1_in1k".
        title: for messages, e.g. "ImageNet weights of vgg16".
        address: where they are published.
        preprocessing: of the images that they were trained on.
        classes: names of the classes of their head; None for a trunk alone, or where they are unknown.
    """

    name: str
    title: str
    address: Address
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class TorchHub:
    """A file at any URL, cached by torch.hub under its own name."""

    url: str

    @property
    def path(self) -> Path:
        return _hub_dir() / "checkpoints" / Path(urlparse(self.url).path).name

    def local_copy(self) -> Path | None:
        return self.path if self.path.exists() else None

    def require_reachable(self, what: str) -> None:
        downloads.require_reachable(self.url, what=what, manual_path=str(self.path))

    def fetch(self, what: str) -> Path:
        promised = HASH_IN_NAME.search(self.path.name)
        beginning = promised[1] if promised else ""
        if self.local_copy() is None:
            self.require_reachable(what)
            try:
                downloads.download(self.url, self.path, what=what, sha256=beginning)
            except DataError as error:
                raise WeightsError(str(error)) from error
        require_hash(self.path, beginning)
        return self.path


def require_hash(file: Path, beginning: str) -> None:
    """Raise WeightsError unless the SHA-256 of `file` has this `beginning`, which its name contains."""
    if not sha256(file).startswith(beginning):
        raise WeightsError(
            f"{file}: its SHA-256 does not begin with {beginning} as in its name; the file is damaged. "
            "Delete it, and the next run downloads it again."
        )


def torchvision_address(network: str, entry: str) -> TorchHub | None:
    """The address of torchvision's weights, found without importing it; None where that is unknown.

    Args:
        network: torchvision's name, e.g. "vgg16".
        entry: "default" or the name of an entry, e.g. "IMAGENET1K_V1".
    """
    url = _torchvision_entries(network).get("DEFAULT" if entry == "default" else entry)
    return None if url is None else TorchHub(url)


def _hub_dir() -> Path:
    """`torch.hub.get_dir()`, from the same environment variables where torch is not imported."""
    if "torch" in sys.modules:
        return Path(sys.modules["torch"].hub.get_dir())
    cache_home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache_home, "torch"))).expanduser() / "hub"


@cache
def _torchvision_entries(network: str) -> dict[str, str]:
    """Weight entries of `network` and their URLs, read from the source text of torchvision.models."""
    spec = importlib.util.find_spec("torchvision")
    folders = [Path(folder) / "models" for folder in (spec.submodule_search_locations or ())] if spec else []
    texts = (file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.py")))
    text = next((text for text in texts if f"\ndef {network}(" in text), "")
    enum = re.search(rf"\ndef {re.escape(network)}\(.*?(\w+_Weights)\b", text, re.DOTALL)
    classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    return next((_urls(node) for node in classes if enum is not None and node.name == enum[1]), {})


def _urls(enum: ast.ClassDef) -> dict[str, str]:
    """The entries of an enumeration of weights, `V1 = Weights(url="…")` and `DEFAULT = V1`, and their URLs."""
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
