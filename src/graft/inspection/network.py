"""The layers of a network: name, type, output shape, parameters and what of them trains."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn


@dataclass(frozen=True)
class Layer:
    """A module without children, or one that has parameters of its own.

    Attributes:
        name: in the network, e.g. "features.0".
        kind: its class.
        shape: of its output for one image, without the batch; empty if it is not called or gives no tensor.
        parameters: number of values in the parameters of its own.
        trainable: number of those that train.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    trainable: int


def layers_of(network: nn.Module, shape: tuple[int, int, int], trainable: Collection[str]) -> list[Layer]:
    """The layers of a network, in the order in which they are defined.

    Args:
        network: normalised images [B, C, H, W] to logits; it is called in evaluation mode.
        shape: (C, H, W) of the input.
        trainable: names of the parameters that train.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    shown = {name: module for name, module in network.named_modules() if _is_layer(module)}

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape[1:])

        return hook

    hooks = [module.register_forward_hook(record(name)) for name, module in shown.items()]
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    layers = []
    for name, module in shown.items():
        own = {f"{name}.{key}" if name else key: value.numel() for key, value in module.named_parameters(recurse=False)}
        trains = sum(count for key, count in own.items() if key in trainable)
        layers.append(Layer(name, type(module).__name__, shapes.get(name, ()), sum(own.values()), trains))
    return layers


def _is_layer(module: nn.Module) -> bool:
    return not any(True for _ in module.children()) or any(True for _ in module.named_parameters(recurse=False))


def layer_table(layers: Collection[Layer], title: str) -> Table:
    """One row per layer, and the totals."""
    table = Table(title=title, title_justify="left", show_footer=True)
    total, trains = sum(layer.parameters for layer in layers), sum(layer.trainable for layer in layers)
    table.add_column("layer", footer="total", overflow="fold")
    table.add_column("type")
    table.add_column("output shape")
    table.add_column("parameters", justify="right", footer=f"{total:,}")
    table.add_column("trainable", justify="right", footer=f"{trains:,}")
    for layer in layers:
        shape = " × ".join(map(str, layer.shape)) or "–"
        counts = (f"{layer.parameters:,}", f"{layer.trainable:,}") if layer.parameters else ("–", "–")
        table.add_row(layer.name, layer.kind, shape, *counts)
    return table
