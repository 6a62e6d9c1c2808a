"""What training a candidate costs: minutes from measured steps, memory and size from its layers."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graft.advice.candidates import Candidate
from graft.config.duration import seconds_of
from graft.config.schema import TrainConfig
from graft.data.augment import Augment, augment_of
from graft.probing.features import Pretrained
from graft.transfer.stages import Stage

SLOWEST = 4.0
"""Seconds that a measured step may take: fewer images than in a batch are measured, if they need more."""

OPTIMIZER_STATES = {"SGD": 1, "Adam": 2, "AdamW": 2}
"""Class of an optimizer -> tensors that it keeps for each trained one; of any other it is 2."""


@dataclass(frozen=True)
class Speed:
    """Seconds per image on this machine.

    Attributes:
        load: reading and decoding, in one process.
        forward: of the whole network, without gradients.
        step: forward, backward and optimizer step, by the number of frozen stages.
    """

    load: float
    forward: float
    step: dict[int, float]


@dataclass(frozen=True)
class Cost:
    """What training a candidate costs.

    Attributes:
        minutes: of `graft train`, on this machine.
        memory: bytes for weights, gradients, optimizer state and activations of a batch, estimated from the layers.
        size: bytes of the weights.
    """

    minutes: float
    memory: int
    size: int


def forward_seconds(run: Callable[[Tensor], object], images: Tensor) -> float:
    """Seconds per image of `run`, a function of a batch, the second time that it is called."""
    with torch.no_grad():
        run(images)
        return _timed(lambda: run(images), images.device) / len(images)


def step_seconds(network: Pretrained, frozen: Sequence[Stage], images: Tensor) -> float:
    """Seconds per image of a training step; changes the network's BatchNorm statistics.

    Args:
        network: on the device of `images`; its weights are not changed.
        frozen: stages that do not train.
        images: a batch, normalised.
    """
    names = network.parameters_in(frozen)
    module = network.network.train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in names)
    optimizer = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=0.0, momentum=0.9)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def step() -> None:
        optimizer.zero_grad()
        outputs = module(images)
        outputs = outputs if isinstance(outputs, Tensor) else outputs[0]
        nn.functional.cross_entropy(outputs.float(), labels).backward()
        optimizer.step()

    step()
    return _timed(step, images.device) / len(images)


def _timed(action: Callable[[], object], device: torch.device) -> float:
    """Seconds that `action` takes, work on a GPU included."""
    _finish(device)
    started = time.perf_counter()
    action()
    _finish(device)
    return time.perf_counter() - started


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cost(
    candidate: Candidate,
    network: Pretrained,
    config: TrainConfig,
    speed: Speed,
    counts: dict[str, int],
    activations: Sequence[int],
    start: float,
) -> Cost:
    """What training a candidate costs.

    Args:
        candidate: the way to train.
        network: of the candidate.
        config: of its run.
        speed: of its network.
        counts: number of images of "train", "val" and "test".
        activations: number of values of each stage's outputs, the head's last, for one image.
        start: seconds of a run besides its passes over images.
    """
    frozen = len(candidate.frozen)
    parameters = dict(network.network.named_parameters())
    fixed = network.parameters_in(network.backbone[:frozen])
    trained = sum(each.numel() for name, each in parameters.items() if name not in fixed)
    total = sum(each.numel() for each in parameters.values())
    states = OPTIMIZER_STATES.get(str(config.optimizer._target_).rpartition(".")[2], 2)
    kept = sum(activations[frozen:]) if frozen else sum(activations)
    memory = 4 * (total + trained * (1 + states) + kept * int(config.data.batch_size))
    epochs = epochs_of(config, counts["train"])
    view = speed.load + speed.forward
    cached = cached_views(config)
    if candidate.strategy == "feature_extract" and config.cache.mode != "none" and cached is not None:
        views = epochs if cached == "all" else min(float(cached), epochs)
        head = max(0.0, speed.step[frozen] - speed.forward)
        seconds = (views * counts["train"] + counts["val"]) * view + epochs * counts["train"] * head
    else:
        seconds = epochs * (counts["train"] * (speed.load + speed.step[frozen]) + counts["val"] * view)
    seconds += counts["test"] * view * config.trainer.test
    if config.trainer.max_time is not None:
        seconds = min(seconds, seconds_of("trainer.max_time", config.trainer.max_time))
    return Cost((seconds + start) / 60, memory, 4 * total)


def cached_views(config: TrainConfig) -> int | str | None:
    """Views of each training image that a frozen backbone sees: 1: without augmentation, None: a new one per epoch."""
    if config.augment.mixup or config.augment.cutmix:
        return None
    return 1 if augment_of(config) == Augment() else config.cache.views


def epochs_of(config: TrainConfig, images: int) -> float:
    """Length of a run in epochs."""
    steps = steps_per_epoch(config, images)
    epochs = float("inf") if config.trainer.max_epochs == -1 else float(config.trainer.max_epochs)
    return min(epochs, float("inf") if config.trainer.max_steps == -1 else config.trainer.max_steps / steps)


def steps_per_epoch(config: TrainConfig, images: int) -> float:
    """Optimizer steps in an epoch."""
    return max(1.0, images / (int(config.data.batch_size) * config.trainer.accumulate_grad_batches))


def activations_of(network: Pretrained, images: Tensor) -> list[int]:
    """Number of values that the layers of each stage give for one image, the head's last."""
    counts = dict.fromkeys([stage.name for stage in network.stages], 0)

    def count(stage: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, outputs: object) -> None:
            if isinstance(outputs, Tensor):
                counts[stage] += outputs.numel() // len(images)

        return hook

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, module in network.network.named_modules():
            stage = next((stage.name for stage in network.stages if stage.holds(name)), None)
            if stage is not None and not list(module.children()):
                stack.callback(module.register_forward_hook(count(stage)).remove)
        network.network.eval()(images)
    return list(counts.values())
