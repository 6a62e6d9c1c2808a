"""The interface of an export format.

This module and those of Graft's formats import torch only inside their methods, so that a mistake in the configuration
is answered at once.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from graft.config.targets import build
from graft.config.task import MULTI_LABEL, SINGLE_LABEL
from graft.errors import ConfigError
from graft.system.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from graft.export.formats import ExportedNetwork
    from graft.learning.restore import Restored


def decisions_of_network(restored: "Restored") -> dict[str, Any]:
    """How the logits of a network become decisions, for the description of its file."""
    activation = {SINGLE_LABEL.name: "softmax", MULTI_LABEL.name: "sigmoid"}
    thresholds = {} if restored.thresholds is None else {"thresholds": list(restored.thresholds)}
    return {"task": restored.task.name, "activation": activation[restored.task.name], **thresholds}


class Format(ABC):
    """A file format for networks; subclass it and name the class by `format.NAME._target_`.

    `graft export` writes a file, reads it back, compares its logits with the checkpoint's on real images, and
    describes it in a JSON file next to it. The arguments of the constructor are the other keys of `format.NAME`.

    Attributes:
        suffix: of the file's name, e.g. ".onnx".
        weights_only: whether the file holds weights without the computation, and so cannot include the normalisation
            (`preprocess=true`).
        name: of the file without its suffix, where the format prescribes it; None: that of the export.
    """

    suffix: ClassVar[str]
    weights_only: ClassVar[bool] = False
    name: ClassVar[str | None] = None

    @abstractmethod
    def write(self, network: "ExportedNetwork", file: Path) -> None:
        """Write `network` to `file`, and further files next to it if the format needs them."""

    @abstractmethod
    def read(self, network: "ExportedNetwork", file: Path) -> "Callable[[Tensor], Tensor]":
        """Read `file` back as the program would that it is for.

        Returns:
            A function from images on the CPU, as `network.prepare` makes them, to logits [B, C] on the CPU.
        """

    def details(self, file: Path) -> dict[str, Any]:
        """Further entries of the JSON file next to `file`, read from `file` itself; none by default."""
        return {}

    def describe(
        self, network: "ExportedNetwork", file: Path, description: Mapping[str, Any], summary: Mapping[str, Any]
    ) -> None:
        """Describe `file` for a person who has no other file: by default `description`, in a JSON file next to it.

        Args:
            network: what is exported.
            file: the written file.
            description: see `graft.tasks.export.description`.
            summary: of the run; empty where that is unknown.
        """
        text = json.dumps(description, indent=2, ensure_ascii=False)
        write_atomically(file.with_name(f"{file.name}.json"), f"{text}\n".encode())

    def publish(self, network: "ExportedNetwork", file: Path) -> None:  # noqa: B027
        """Called with the final path of the file once all files are written; does nothing by default."""

    @abstractmethod
    def how_to_load(self, network: "ExportedNetwork", file: Path) -> str:
        """Python statements that read `file`, for a person who has only the file and its JSON."""


def build_formats(formats: Mapping[str, Mapping[str, Any]]) -> dict[str, Format]:
    """The formats of a configuration, by name.

    Args:
        formats: name -> `_target_` and its arguments.

    Raises:
        ConfigError: a target that cannot be built or is no `Format`, two formats with the same suffix.
    """
    built = {name: build(f"format.{name}", node) for name, node in formats.items()}
    by_suffix: dict[str, str] = {}
    for name, each in built.items():
        if not isinstance(each, Format):
            raise ConfigError(f"format.{name}: {type(each).__name__} is no subclass of graft.export.Format.")
        if each.suffix in by_suffix:
            raise ConfigError(f"format.{by_suffix[each.suffix]} and format.{name} both write {each.suffix} files.")
        by_suffix[each.suffix] = name
    return built
