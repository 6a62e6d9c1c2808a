"""State dicts: the weights alone, under the names of torchvision or timm, for the plain network of that library."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.export.format import Format, decisions_of_network

if TYPE_CHECKING:
    from torch import Tensor

    from graft.export.formats import ExportedNetwork


class Pickle(Format):
    """A .pth file of `torch.save`, which `torch.load(…, weights_only=True)` reads."""

    suffix = ".pth"
    weights_only = True

    def write(self, network: "ExportedNetwork", file: Path) -> None:
        import torch

        with file.open("wb") as opened:
            torch.save(network.weights(), opened)

    def read(self, network: "ExportedNetwork", file: Path) -> "Callable[[Tensor], Tensor]":
        import torch

        return network.origin.filled(torch.load(file, weights_only=True))

    def how_to_load(self, network: "ExportedNetwork", file: Path) -> str:
        return _statements(network, f"torch.load({file.name!r}, weights_only=True)")


class Safetensors(Format):
    """A .safetensors file whose metadata has recipe, classes and preprocessing, for `model.weights=FILE`."""

    suffix = ".safetensors"
    weights_only = True

    def write(self, network: "ExportedNetwork", file: Path) -> None:
        from safetensors.torch import save

        restored = network.restored
        described: dict[str, Any] = {
            "recipe": restored.recipe.to_dict(),
            "classes": restored.classes,
            "preprocessing": restored.preprocessing.to_dict(),
            "decisions": decisions_of_network(restored),
        }
        metadata = {key: json.dumps(value) for key, value in described.items()}
        file.write_bytes(save(network.weights(), metadata))  # save_file lets only the owner read the file

    def read(self, network: "ExportedNetwork", file: Path) -> "Callable[[Tensor], Tensor]":
        from safetensors.torch import load_file

        return network.origin.filled(load_file(file))

    def how_to_load(self, network: "ExportedNetwork", file: Path) -> str:
        return _statements(network, f"safetensors.torch.load_file({file.name!r})")


def _statements(network: "ExportedNetwork", weights: str) -> str:
    removed = "".join(f"network.set_submodule({name!r}, torch.nn.Identity()); " for name in network.origin.removed)
    return f"network = {network.origin.line}; {removed}network.load_state_dict({weights}); network.eval()"
