"""Weights that a library publishes: where they are kept, whether they are within reach, and how they come here."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

import torch

from graft import downloads
from graft.errors import DataError, WeightsError
from graft.files import sha256
from graft.preprocessing import Preprocessing

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

    def require_reachable(self, what: str, timeout: float = 5.0) -> None:
        """Raise NotAvailable, within `timeout` seconds, unless `what` can be fetched."""

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
        return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(self.url).path).name

    def here(self) -> Path | None:
        return self.place if self.place.exists() else None

    def require_reachable(self, what: str, timeout: float = 5.0) -> None:
        downloads.require_reachable(self.url, what=what, place=str(self.place), timeout=timeout)

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
