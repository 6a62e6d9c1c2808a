"""The mean of several state dicts of the same network."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from graft.learning.inference import Inference
from graft.transfer.plan import BATCH_NORMS

Weights = Mapping[str, Tensor]


def mean_of(states: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor, computed in float64; integers, such as counters, are the first's.

    Tensors that are equal in all of them, and a single state dict, stay as they are, to the bit.
    """
    first, *others = states
    return {name: _mean([tensor, *(state[name] for state in others)]) for name, tensor in first.items()}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first, *others = tensors
    if not first.is_floating_point() or all(torch.equal(first, other) for other in others):
        return first.clone()
    total = first.double()
    for other in others:
        total += other.double()
    return (total / len(tensors)).to(first.dtype)


def differing_statistics(network: nn.Module, states: Sequence[Weights]) -> list[str]:
    """Names of the BatchNorm layers whose running mean or variance is not the same in all state dicts."""
    first, *others = states
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, BATCH_NORMS)
        and module.running_mean is not None
        and any(
            not torch.equal(first[key], other[key])
            for key in (f"{name}.running_mean", f"{name}.running_var")
            for other in others
        )
    ]


@torch.no_grad()
def measure_statistics(inference: Inference, layers: Iterable[str], batches: Iterable[Tensor]) -> None:
    """Set running mean and variance of BatchNorm layers to their means over batches of images.

    The mean of several networks' statistics is not what the mean of their weights produces (Izmailov et al. 2018,
    "Averaging Weights Leads to Wider Optima and Better Generalization").

    Args:
        inference: the network; its other layers stay in evaluation mode.
        layers: names of the layers.
        batches: uint8 images [B, 3, H, W], as `inference.preparation` makes them.
    """
    modules = [inference.network.get_submodule(name) for name in layers]
    momenta = [module.momentum for module in modules]
    try:
        for module in modules:
            module.reset_running_stats()  # type: ignore[operator]
            module.momentum = None  # type: ignore[assignment]  # the mean over all batches
            module.train()
        for images in batches:
            inference(images)
    finally:
        for module, momentum in zip(modules, momenta, strict=True):
            module.momentum = momentum
            module.eval()
