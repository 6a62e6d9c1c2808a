"""Grad-CAM (Selvaraju et al. 2017): which regions of an image raise the score of a class."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchcam.methods import GradCAM

from graft.transfer.stages import AUXILIARY, CLASSIFIER, HEAD, stages_of

POOLING = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Dropout,
)  # fmt: skip
"""Layers after the last feature map that only summarise it."""


def grad_cam(
    network: nn.Module, images: Tensor, classes: Tensor, normalise: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """Grad-CAM of the last feature map, or of the last patch tokens of a vision transformer.

    The network is left as it was: no gradient, no statistic, no mode changes.

    Args:
        network: images [B, C, H, W] (normalised) to logits [B, C].
        images: levels [B, C, H, W].
        classes: the class of each image, int64 [B].
        normalise: converts levels to the network's input.

    Returns:
        [B, H, W] in [0, 1] on the CPU, each image's maximum 1 (all 0 where no region raises the score); None for a
        network without a feature map larger than 1 × 1.
    """
    with _evaluation_mode(network), torch.inference_mode(False), torch.enable_grad():
        inputs = normalise(images).clone().requires_grad_()  # gradients flow through frozen layers too
        layer = last_map(network, inputs[:1], classes[:1])
        if layer is None:
            return None
        with GradCAM(network, layer, reshape_transform=feature_map) as extract:
            logits = _logits(network, inputs)
            (heat,) = extract(classes.tolist(), logits, normalized=False)
    heat = F.interpolate(heat[:, None].float(), images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu()


def last_map(network: nn.Module, inputs: Tensor, classes: Tensor) -> str | None:
    """Name of the trunk's last module whose output is a feature map that the class's score depends on.

    In a vision transformer whose head reads the class token only, that is the normalisation before the last attention,
    after which no patch token has an effect.

    Args:
        network: in evaluation mode.
        inputs: one image, [1, 3, H, W], that requires a gradient.
        classes: its class, [1].
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, _: object, output: object) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                outputs.pop(name, None)
                outputs[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in _trunk(network)]
    try:
        score = _logits(network, inputs).gather(1, classes[:, None]).sum()
    finally:
        for handle in handles:
            handle.remove()
    maps = {name: output for name, output in outputs.items() if feature_map(output).shape[2:].numel() > 1}
    if not maps:
        return None
    final = list(maps.values())[-1]
    alike = [name for name, output in maps.items() if output.dim() == final.dim() and _width(output) == _width(final)]
    gradients = torch.autograd.grad(score, [maps[name] for name in alike], allow_unused=True)
    used = [
        name
        for name, gradient in zip(alike, gradients, strict=True)
        if gradient is not None and bool(feature_map(gradient).count_nonzero())
    ]
    return used[-1] if used else alike[-1]


def feature_map(output: Tensor) -> Tensor:
    """The output of a layer as a map [B, D, H, W]; [B, D, 1, 1] where it has no spatial positions.

    Args:
        output: [B, D, H, W]; [B, H, W, D] with H = W, as in a Swin transformer; or tokens [B, N, D] of a square grid,
            after any number of class and register tokens below 9.
    """
    if output.dim() == 4:
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.permute(0, 3, 1, 2) if channels_last else output
    if output.dim() == 3:
        side = int(output.shape[1] ** 0.5)
        extra = output.shape[1] - side * side
        if side > 1 and extra < 9:
            return output[:, extra:].transpose(1, 2).unflatten(2, (side, side))
    return output.flatten(1)[:, :, None, None]


def _width(output: Tensor) -> int:
    """Features of each position."""
    return feature_map(output).shape[1]


def _trunk(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules before the classifier, without the layers that only summarise the last map."""
    trunk = [stage for stage in stages_of(network) if stage.group not in (HEAD, CLASSIFIER, AUXILIARY)]
    for name, module in network.named_modules():
        if not isinstance(module, POOLING) and any(stage.holds(name) for stage in trunk):
            yield name, module


def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
    output = network.forward(inputs)  # not a call, which a compiled network would answer without hooks
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    training = {name: module.training for name, module in network.named_modules()}
    network.eval()
    try:
        yield
    finally:
        for name, module in network.named_modules():
            module.training = training[name]
