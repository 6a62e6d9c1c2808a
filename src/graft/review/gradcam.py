"""Where a network looked (Selvaraju et al. 2017, "Grad-CAM")."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graft.transfer.stages import AUXILIARY, CLASSIFIER, HEAD, stages_of

AFTER_THE_MAP = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Dropout,
)  # fmt: skip


def grad_cam(
    network: nn.Module, images: Tensor, classes: Tensor, normalise: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """How much each place of the last convolutional map speaks for a class.

    The map's channels are weighted by the mean gradient of the class's logit, added up, and what speaks against
    the class is cut off. The network is left as it was: no gradient, no statistic, no mode changes.

    Args:
        network: images [B, 3, S, S] (normalised) to logits [B, C].
        images: uint8 [B, 3, S, S].
        classes: the class of each image, int64 [B].
        normalise: uint8 images to what the network takes.

    Returns:
        [B, S, S] in [0, 1], each image's strongest place 1 (all 0 where nothing speaks for the class), on the
        CPU; None for a network without a map of places, such as a vision transformer.
    """
    training = {name: module.training for name, module in network.named_modules()}
    network.eval()
    try:
        for name in last_maps(network):
            maps, gradient = map_and_gradient(network, network.get_submodule(name), normalise(images), classes)
            if maps is not None and gradient is not None:
                places = maps.dim() == 4 and maps.shape[-1] > 1
                return heat(maps, gradient, size=images.shape[-1]) if places else None
    finally:
        for name, module in network.named_modules():
            module.training = training[name]
    return None


def last_maps(network: nn.Module) -> Iterator[str]:
    """The modules that put out the trunk's last map, the first that is called: what only sums it up is left out."""
    trunk = [stage for stage in stages_of(network) if stage.group not in (HEAD, CLASSIFIER, AUXILIARY)]
    names = dict(network.named_modules())
    for name in [name for stage in reversed(trunk) for name in reversed(stage.modules)]:
        if name in names and not isinstance(names[name], AFTER_THE_MAP):
            yield name


def map_and_gradient(
    network: nn.Module, module: nn.Module, inputs: Tensor, classes: Tensor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """What `module` puts out, and the gradient of the classes' logits by it; [B, D, H, W] where it is a map. None
    where the module is not called."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        kept[:] = [output.detach().requires_grad_()]
        return kept[0].clone()  # what follows may write into it

    hook = module.register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            output = network.forward(inputs.clone())  # not a call, which a compiled network would answer without hooks
            logits = output if isinstance(output, Tensor) else output[0]
            chosen = logits.gather(1, classes[:, None]).sum()
            if not kept:
                return None, None
            (gradient,) = torch.autograd.grad(chosen, kept[0])
    finally:
        hook.remove()
    maps = kept[0].detach()
    if maps.dim() == 4 and maps.shape[1] == maps.shape[2] != maps.shape[3]:  # channels last, as in a Swin transformer
        maps, gradient = maps.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    return maps, gradient


def heat(maps: Tensor, gradient: Tensor, *, size: int) -> Tensor:
    """The weighted map, enlarged to the image."""
    weights = gradient.float().mean((2, 3), keepdim=True)
    heat = (weights * maps.float()).sum(1, keepdim=True).relu()
    heat = F.interpolate(heat, (size, size), mode="bilinear", align_corners=False)[:, 0]
    return (heat / heat.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu()
