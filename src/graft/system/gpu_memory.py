"""Explains an out-of-memory error with the batch size to try."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from graft.errors import TrainingError

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
"""Words in the out-of-memory errors of CUDA, other devices and the CPU."""


def batch_that_fits(batch_size: int, *, capacity: int, fixed: int, demanded: int) -> int | None:
    """Batch size to try after `batch_size` images did not fit; None if not even one image fits.

    The memory of a batch grows with its size, but an aborted pass has allocated only a part of it. The result is
    therefore the largest power of two that is at most half of `batch_size` and that fits according to `demanded`.

    Args:
        batch_size: size of the batch that did not fit.
        capacity: memory of the device in bytes.
        fixed: bytes of weights, gradients and optimizer state.
        demanded: bytes that were allocated and requested when the pass was aborted.
    """
    most = batch_size // 2
    if demanded > fixed:
        most = min(most, max(0, capacity - fixed) * batch_size // (demanded - fixed))
    return 1 << most.bit_length() - 1 if most else None


@contextmanager
def explaining_out_of_memory(trainer: pl.Trainer, batch_size: int, accumulated: int) -> Iterator[None]:
    """Turn an out-of-memory error into a TrainingError with the batch size to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        message = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(
            word in message for word in OUT_OF_MEMORY
        ):
            raise
        raise TrainingError(_advice(trainer, batch_size, accumulated, str(error))) from error


def _advice(trainer: pl.Trainer, batch_size: int, accumulated: int, message: str) -> str:
    fixed, capacity, demanded = _fixed_bytes(trainer), 0, 0
    device = trainer.strategy.root_device
    if device.type == "cuda":
        capacity = torch.cuda.get_device_properties(device).total_memory
        demanded = max(capacity, torch.cuda.max_memory_allocated(device))
    fits = batch_that_fits(batch_size, capacity=capacity, fixed=fixed, demanded=demanded)
    first = " ".join(message.split(". ")[0].split())
    if fits is None:
        way_out = "Not even one image fits: use a smaller model, or a smaller data.preprocess.input_size."
    else:
        times = -(-batch_size * accumulated // fits)
        way_out = (
            f"Try data.batch_size={fits}; trainer.accumulate_grad_batches={times} keeps the number of images per step. "
            "trainer.precision=bf16-mixed and a strategy that freezes more layers need less memory, too."
        )
    return f"data.batch_size={batch_size}: memory ran out ({device.type}: {first}).\n{way_out}"


def _fixed_bytes(trainer: pl.Trainer) -> int:
    """Of weights, their gradients and the optimizer's state, as they are now."""
    module: Any = trainer.lightning_module
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    for optimizer in trainer.optimizers:
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
