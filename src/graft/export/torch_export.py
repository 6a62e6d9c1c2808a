"""torch.export: the computation and the weights, for PyTorch without the code of the network."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from graft.export.format import Format

if TYPE_CHECKING:
    from torch import Tensor

    from graft.export.formats import ExportedNetwork


class TorchExport(Format):
    """A .pt2 file of `torch.export`, for batches of any size."""

    suffix = ".pt2"

    def write(self, network: "ExportedNetwork", file: Path) -> None:
        import torch

        batch = {"images": {0: torch.export.Dim("batch")}}
        program = torch.export.export(network.module, (network.example(),), dynamic_shapes=batch)
        content = io.BytesIO()  # given a path, torch's own writer does not say why it cannot write, or aborts
        torch.export.save(program, content)
        file.write_bytes(content.getbuffer())

    def read(self, network: "ExportedNetwork", file: Path) -> "Callable[[Tensor], Tensor]":
        import torch

        return torch.export.load(file).module()

    def how_to_load(self, network: "ExportedNetwork", file: Path) -> str:
        return f"network = torch.export.load({file.name!r}).module(); logits = network(images)"
