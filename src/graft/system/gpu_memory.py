"""When memory runs out: which batch would fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from graft.errors import TrainingError

WORDS = ("out of memory", "not enough memory", "can't allocate memory")
"""How the allocators of CUDA, other devices and the CPU say it."""


def batch_that_fits(batch_size: int, *, capacity: int, fixed: int, demanded: int) -> int | None:
    """The batch size to try after `batch_size` images were too many; None where even one image is.

    What a batch needs grows with its images, but a pass that breaks off has shown only a part of it. So this is the
    largest power of two that is at most half of `batch_size` and that what was seen does not rule out.

    Args:
        batch_size: images of the batch that did not fit.
        capacity: bytes of memory there are.
        fixed: bytes of weights, gradients and optimizer state.
        demanded: bytes that were held and asked for when it broke off.
    """
    most = batch_size // 2
    if demanded > fixed:
        most = min(most, max(0, capacity - fixed) * batch_size // (demanded - fixed))
    return 1 << most.bit_length() - 1 if most else None


@contextmanager
def telling_what_fits(trainer: pl.Trainer, batch_size: int, accumulated: int) -> Iterator[None]:
    """Turn running out of memory into a TrainingError with the batch size to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(word in said for word in WORDS):
            raise
        raise TrainingError(_advice(trainer, batch_size, accumulated, str(error))) from error


def _advice(trainer: pl.Trainer, batch_size: int, accumulated: int, said: str) -> str:
    fixed, capacity, demanded = _bytes_held(trainer), 0, 0
    device = trainer.strategy.root_device
    if device.type == "cuda":
        capacity = torch.cuda.get_device_properties(device).total_memory
        demanded = max(capacity, torch.cuda.max_memory_allocated(device))
    fits = batch_that_fits(batch_size, capacity=capacity, fixed=fixed, demanded=demanded)
    first = " ".join(said.split(". ")[0].split())
    if fits is None:
        way_out = "Not even one image fits: take a smaller model, or data.preprocess.input_size."
    else:
        times = -(-batch_size * accumulated // fits)
        way_out = (
            f"Try data.batch_size={fits}; with trainer.accumulate_grad_batches={times} as many images make a step. "
            "trainer.precision=bf16-mixed and a strategy that freezes more need less, too."
        )
    return f"data.batch_size={batch_size}: memory ran out ({device.type}: {first}).\n{way_out}"


def _bytes_held(trainer: pl.Trainer) -> int:
    """Of weights, their gradients and the optimizer's state, as they are now."""
    module: Any = trainer.lightning_module
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
