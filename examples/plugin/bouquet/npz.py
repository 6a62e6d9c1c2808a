"""An export format: a NumPy archive of the weights, for JAX, MLX or a program without PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.export import Format

if TYPE_CHECKING:
    from torch import Tensor

    from graft.export.formats import ExportedNetwork


class Npz(Format):
    """An .npz file with one array per entry of the state dict.

    `graft export` writes the file, reads it back with `read`, compares the logits with the checkpoint's on real images,
    and keeps the file only if they agree.

    Args:
        compressed: whether to deflate the arrays: about 10 % smaller and many times slower.
    """

    suffix = ".npz"
    weights_only = True

    def __init__(self, compressed: bool = False) -> None:
        self.compressed = compressed

    def write(self, network: "ExportedNetwork", file: Path) -> None:
        import numpy as np

        arrays = {name: tensor.numpy() for name, tensor in network.weights().items()}
        save: Any = np.savez_compressed if self.compressed else np.savez
        with file.open("wb") as opened:
            save(opened, **arrays)

    def read(self, network: "ExportedNetwork", file: Path) -> "Callable[[Tensor], Tensor]":
        import numpy as np
        import torch

        with np.load(file) as arrays:  # no pickles: a file is data
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return network.origin.filled(weights)

    def how_to_load(self, network: "ExportedNetwork", file: Path) -> str:
        return f"weights = dict(numpy.load({file.name!r}))"
