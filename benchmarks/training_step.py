"""A training step of Graft against loops written by hand: the notebooks' in fp32, and the best one for this machine.

    python -m benchmarks.training_step                       VGG16, every layer trains, 224 pixels, batches of 16
    python -m benchmarks.training_step --quick               vgg_mini at 32 pixels, in seconds
    python -m benchmarks.training_step --model resnet18 --batch-size 64 --compile

All loops train the same network from the same random weights on the same images of noise, uint8 in memory, with SGD
and momentum:

plain      fp32, as the notebooks write it
by hand    bf16 autocast, channels-last, fused SGD: nothing but forward, backward, step
timm       by hand too, with timm's optimizer and meters, in the order of its train.py (where timm is installed)
Lightning  the same network in the shortest LightningModule, `Trainer(precision="bf16-mixed")`
Graft      `graft train` as it is: normalisation, metrics, callbacks, progress, everything between two batches

On a CPU Graft keeps freed memory for the next step, the others do not, but for `by hand, kept`. Each pair runs all of
them in turn; a step's time is the mean of all but the first. Besides: which share that is of
the rate at which this machine multiplies large bf16 matrices.
"""

import argparse
import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import noise, training
from graft.data.splits import Splits
from graft.learning.callbacks.build import build_callbacks
from graft.learning.loggers import build_loggers
from graft.models.normalise import Normalise
from graft.system.allocator import reuse_freed_memory
from graft.system.device import Device, choose_device
from graft.tasks.build import assemble
from graft.tasks.trainer import build_trainer, silence_lightning

MOMENTUM = 0.9
LR = 0.001

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class Stopwatch(Callback):
    """Times steps: as a callback those of a Trainer, else one at each `tick`. A GPU is waited for only at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.warm_up = device, 5 if device.type == "cuda" else 1
        self.steps, self.started, self.ended = 0, 0.0, 0.0

    def tick(self) -> None:
        """A step has been launched."""
        self.steps += 1
        if self.steps == self.warm_up:
            self.started = now(self.device)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.tick()
        if trainer.is_last_batch:
            self.ended = now(self.device)

    def step(self) -> float:
        """Mean seconds of the steps after the warm-up."""
        return ((self.ended or now(self.device)) - self.started) / (self.steps - self.warm_up)


def now(device: torch.device) -> float:
    """Seconds, when a GPU has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def batches_of_noise(config: Any, steps: int) -> Splits:
    """`steps` batches of pictures that are noise, and two pictures to validate, in two classes."""
    size = config.data.preprocess.input_size
    val = noise(2, size)
    return Splits(("one", "other"), noise(steps * config.data.batch_size, size), val, val)


@dataclass(frozen=True)
class Loop:
    """How a hand-written loop computes."""

    bf16: bool = False
    channels_last: bool = False
    fused: bool = False
    tf32: bool = False
    try_algorithms: bool = False

    def set(self) -> None:
        """Set the global switches of PyTorch."""
        torch.backends.cudnn.benchmark = self.try_algorithms
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = self.tf32

    def laid_out(self, images: Tensor) -> Tensor:
        """`images` in this loop's memory format."""
        return images.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


PLAIN = Loop()
BEST = Loop(bf16=True, channels_last=True, fused=True, tf32=True, try_algorithms=True)


def by_loop(network: nn.Module, batches: Batches, device: torch.device, loop: Loop) -> float:
    """Seconds a step of a loop written by hand."""
    network = network.to(device).train()
    network = network.to(memory_format=torch.channels_last if loop.channels_last else torch.contiguous_format)
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM, fused=loop.fused)
    loop.set()
    watch = Stopwatch(device)
    for images, labels in batches():
        images, labels = loop.laid_out(images.to(device)), labels.to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16) if loop.bf16 else nullcontext():
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        optimizer.step()
        watch.tick()
    return watch.step()


def by_timm(network: nn.Module, batches: Batches, device: torch.device) -> float:
    """Seconds a step as timm trains (--amp --amp-dtype bfloat16 --channels-last): it reads each step's loss."""
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter

    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(network, "momentum", lr=LR, weight_decay=0, momentum=MOMENTUM)
    BEST.set()  # as its train.py
    losses, watch = AverageMeter(), Stopwatch(device)
    for images, labels in batches():
        images, labels = BEST.laid_out(images.to(device)), labels.to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(network(images), labels)
        losses.update(loss.item(), len(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.tick()
    return watch.step()


def kept(way: Callable[[], float]) -> float:
    """What `way` takes where freed memory is kept."""
    with reuse_freed_memory():
        return way()


class Shortest(pl.LightningModule):
    """What one writes who follows Lightning's introduction."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.log("train/loss", loss)
        self.log("train/acc", (logits.argmax(1) == labels).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LR, MOMENTUM)


def by_lightning(network: nn.Module, batches: Batches, device: Device) -> float:
    """Seconds a step of the shortest LightningModule."""
    watch = Stopwatch(device.root)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=device.accelerator,
            devices=1,
            precision=device.precision,  # type: ignore[arg-type]
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch],
            default_root_dir=folder,
        )
        trainer.fit(Shortest(network), DataLoader(list(batches()), batch_size=None))  # type: ignore[arg-type]
    return watch.step()


def by_graft(config: Any, splits: Splits, device: Device) -> float:
    """Seconds a step of Graft; writing checkpoints, which happens between epochs, is left out."""
    watch = Stopwatch(device.root)
    with tempfile.TemporaryDirectory() as folder:
        experiment = assemble(config, splits, Path(folder))
        built = build_callbacks(config, Path(folder), logging.getLogger("graft"))
        callbacks = [watch, *(each for each in built if not isinstance(each, ModelCheckpoint))]
        trainer = build_trainer(experiment, device, Path(folder), build_loggers(config.logger, Path(folder)), callbacks)
        with reuse_freed_memory(device.accelerator == "cpu" and config.trainer.keep_memory):
            trainer.fit(experiment.module, datamodule=experiment.data)
    return watch.step()


def matrix_rate(device: torch.device, side: int = 4096, seconds: float = 2.0) -> float:
    """FLOP a second of bf16 products of square matrices."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    one @ other
    started, products = now(device), 0
    while now(device) - started < seconds:
        one @ other
        products += 1
    return 2 * side**3 * products / (now(device) - started)


def memory_rate(device: torch.device, size: int = 2**30) -> float:
    """Bytes a second that copying large tensors reads and writes."""
    one, other = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    times = []
    for _ in range(4):
        started = now(device)
        other.copy_(one)
        times.append(now(device) - started)
    return 2 * size / min(times)


def flops_an_image(network: nn.Module, size: int) -> float:
    """FLOP of forward and backward for one image."""
    with FlopCounterMode(display=False) as counter:
        network.train()(torch.zeros(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each loop")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--against", nargs="+", metavar="WAY", help="only these, e.g. plain 'by hand'")
    parser.add_argument("--compile", action="store_true", help="trainer.compile=true for Graft")
    parser.add_argument("--quick", action="store_true", help="vgg_mini at 32 pixels, in seconds")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(model="vgg_mini", size=32, batch_size=128, steps=20)
    config = training(
        arguments.model, arguments.size, arguments.batch_size, f"optimizer.lr={LR}", f"optimizer.momentum={MOMENTUM}",
        "optimizer.weight_decay=0", f"trainer.compile={arguments.compile}",
    )  # fmt: skip
    silence_lightning()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    device = choose_device(config.trainer)
    root = device.root
    splits = batches_of_noise(config, arguments.steps + 1)
    with tempfile.TemporaryDirectory() as folder:
        experiment = assemble(config, splits, Path(folder))
    network, normalise = experiment.module.network, Normalise(experiment.module.preprocessing)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in experiment.data.train_dataloader():
            yield normalise(batch.images), batch.labels

    rate, flops = matrix_rate(root), flops_an_image(copy.deepcopy(network), arguments.size)
    print(
        f"{arguments.model}, {arguments.size} pixels, batches of {arguments.batch_size}, {device.accelerator}, "
        f"{torch.get_num_threads()} threads, Graft in {device.precision}"
    )
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: by_loop(copy.deepcopy(network), batches, root, PLAIN),
        "by hand": lambda: by_loop(copy.deepcopy(network), batches, root, BEST),
        "timm": lambda: by_timm(copy.deepcopy(network), batches, root),
        "Lightning": lambda: by_lightning(copy.deepcopy(network), batches, device),
        "Graft": lambda: by_graft(config, splits, device),
    }
    if device.accelerator == "cpu":
        ways["by hand, kept"] = lambda: kept(ways["by hand"])
    if find_spec("timm") is None:
        del ways["timm"]
    if arguments.against:
        ways = {name: ways[name] for name in [*arguments.against, "Graft"]}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for pair in range(1, arguments.pairs + 1):
        for name, way in ways.items():
            times[name].append(way())
        print(
            f"pair {pair}: " + ", ".join(f"{name} {1000 * each[-1]:.1f} ms" for name, each in times.items()), flush=True
        )
    for name in [name for name in ways if name != "Graft"]:
        ratios = [one / other for one, other in zip(times[name], times["Graft"], strict=True)]
        print(f"{name} / Graft: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    step = statistics.median(times["Graft"])
    reached = flops * arguments.batch_size / step
    print(
        f"Graft: {arguments.batch_size / step:.1f} images/s; {flops / 1e9:.1f} GFLOP an image make "
        f"{reached / 1e9:.0f} GFLOP/s, {reached / rate:.0%} of the {rate / 1e9:.0f} GFLOP/s of bf16 matrices"
    )
    moved = 20 * sum(parameter.numel() for parameter in network.parameters())
    products, update = flops * arguments.batch_size / rate, moved / memory_rate(root)
    print(
        f"the least: {1000 * products:.1f} ms of products, and {1000 * update:.1f} ms to read weights, gradients and "
        f"momenta and write weights and momenta ({moved / 1e9:.2f} GB); Graft takes {step / (products + update):.2f} "
        "times that"
    )


if __name__ == "__main__":
    main()
