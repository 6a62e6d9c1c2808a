"""data.batch_size=auto: the largest batch whose training step fits into the GPU's memory."""

import copy
import gc
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from graft.config.recorded import recorded_run
from graft.config.schema import TrainConfig
from graft.config.task import MULTI_LABEL
from graft.data.datasets import Batch
from graft.data.splits import Splits
from graft.data.transforms import black
from graft.errors import ConfigError, TrainingError
from graft.learning.checkpoints import read_checkpoint
from graft.learning.module import TransferModule
from graft.learning.optimizers import build_optimizer
from graft.system.device import Device, benchmark
from graft.system.values import mapping, read_values
from graft.tasks.build import Experiment, assemble

AUTO = "auto"
DEFAULT = 32
"""Batch size on a machine without a GPU."""

LARGEST = 1024
"""Largest batch that is tried: it keeps a GPU busy, and SGD gains little from more (Masters & Luschi 2018)."""

SHARE = 0.9
"""Share of the GPU's memory that a step may take; the rest is for differences between steps."""


def resolve_batch_size(
    config: TrainConfig, splits: Splits, device: Device, folder: Path, resume: Path | None
) -> tuple[TrainConfig, str | None]:
    """Replace data.batch_size=auto by a number; a resumed run keeps the one that it started with.

    Returns:
        (the configuration with a number, a note for the user or None).

    Raises:
        ConfigError: auto in a run of several processes, which would have to agree.
        TrainingError: not even the smallest batch fits.
    """
    if config.data.batch_size != AUTO:
        return config, None
    if config.trainer.strategy != "auto" or device.devices > 1:
        raise ConfigError(
            f"data.batch_size=auto and trainer.strategy={config.trainer.strategy} disagree: it is found for one "
            "process.\nGive a number; python train.py trainer=gpu data.batch_size=auto finds one."
        )
    if resume is not None:
        made = read_values(read_checkpoint(resume)["graft"], {"config": mapping}, str(resume))
        size = recorded_run(made.get("config", {}), str(resume)).get("data", {}).get("batch_size", DEFAULT)
        return _with(config, size), f"data.batch_size=auto: {size}, as before"
    if device.root.type != "cuda":
        return _with(config, DEFAULT), f"data.batch_size=auto: {DEFAULT}, because there is no GPU"
    experiment = assemble(_with(config, 2), splits, folder)
    least = 2 if experiment.data.avoid_single else 1
    most = min(LARGEST, len(splits.train))
    torch.backends.cudnn.benchmark = benchmark(config.trainer, math.inf)  # algorithms differ in memory, too
    fits = step_fits(experiment.module, torch.device("cuda"), device.precision, reserved_bytes(config, experiment))
    size = largest(fits, least, most)
    if size is None:
        raise TrainingError(
            f"data.batch_size=auto: not even {least} image{'s' if least > 1 else ''} fit into the GPU's memory.\n"
            "Take a smaller model, or data.preprocess.input_size."
        )
    return _with(config, size), f"data.batch_size=auto: {size} images fit"


def reserved_bytes(config: TrainConfig, experiment: Experiment) -> int:
    """Bytes that a run keeps on the GPU in addition to its steps: averaged weights and decoded images."""
    network = experiment.module.network
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    return experiment.data.cached_bytes + weights * (config.callbacks.ema is not None)


def largest(fits: Callable[[int], bool], least: int, most: int) -> int | None:
    """The largest `least` · 2ⁿ up to `most` that fits, tried in ascending order; None if `least` does not fit."""
    found, size = None, least
    while size <= max(least, most) and fits(size):
        found, size = size, 2 * size
    return found


def step_fits(module: TransferModule, device: torch.device, precision: str, reserved: int) -> Callable[[int], bool]:
    """A function that returns whether a batch size fits: two training steps, made with a copy of the network.

    Args:
        module: the module; it is not changed.
        device: where to try.
        precision: Lightning's name of it.
        reserved: bytes that the steps must leave free, in addition to those that SHARE leaves.
    """
    capacity = 0.0
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        capacity = total * torch.cuda.get_per_process_memory_fraction(device)

    def fits(batch: int) -> bool:
        trial = copy.deepcopy(module).to(device)
        trial.log_every = sys.maxsize
        try:
            trial.on_train_epoch_start()
            optimizer = build_optimizer(trial.plan.groups, module.optimizer_config)
            images = black(module.preprocessing, batch, device)
            zeros = torch.zeros(batch, dtype=torch.int64, device=device)
            several = module.decisions.task is MULTI_LABEL
            labels = zeros.new_zeros((batch, len(module.classes)), dtype=torch.int8) if several else zeros
            for _ in range(2):
                _step(trial, Batch(images, labels, zeros), optimizer, precision)
            return not capacity or torch.cuda.max_memory_reserved(device) <= SHARE * capacity - reserved
        except torch.OutOfMemoryError:
            return False
        finally:
            del trial
            gc.collect()  # the module and its loss monitor refer to each other
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)

    return fits


def _step(module: TransferModule, batch: Batch, optimizer: torch.optim.Optimizer, precision: str) -> None:
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    with torch.autocast(batch.images.device.type, half, enabled=half is not None):
        loss = module.training_step(batch, 0)
    assert loss is not None  # only within a Trainer is a step skipped
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _with(config: TrainConfig, size: int) -> TrainConfig:
    config = copy.deepcopy(config)
    config.data.batch_size = size
    return config
