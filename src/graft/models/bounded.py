"""Limits on memory: a network or tensors described in a file must not be much larger than the file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from graft.errors import WeightsError

MOST_SHARED = 4

SPARE = 2**24
"""Elements that a network may have in addition to its saved tensors, such as masks that it computes."""


def require_stored(content: object, file: Path) -> None:
    """Refuse a file whose tensors are much larger than the file: expanded views, meta or sparse tensors.

    A tensor that several names share is stored once, so that their sizes together may exceed the file's a few times.

    Args:
        content: of the file: a tensor, or mappings and lists of tensors and other values.
        file: that it was read from.

    Raises:
        WeightsError: names file, tensor and shape.
    """
    size, claimed = file.stat().st_size, 0
    for name, tensor in _tensors_in(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise WeightsError(f"{file}: {name} is not a plain tensor. Save the network's state_dict() again.")
        claimed += tensor.nbytes
        if claimed > MOST_SHARED * size:
            raise WeightsError(
                f"{file}: its tensors, {name} of shape {list(tensor.shape)} among them, claim more than "
                f"{MOST_SHARED} times the file's {size:,} bytes. It is damaged or malicious."
            )


def _tensors_in(content: object) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its printable key; shared containers are visited once."""
    left, seen = [("", content)], set[int]()
    while left:
        name, value = left.pop()
        if isinstance(value, Tensor):
            yield ascii(name)[1:-1][:80], value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            left.extend((str(key), each) for key, each in pairs)


@contextmanager
def no_larger_than(tensors: Mapping[str, Tensor], file: Path) -> Iterator[None]:
    """Context in which building a network fails once it has many more elements than `tensors`, its saved state.

    Layers register their parameters before they initialise them, so that no memory is used by then.

    Raises:
        WeightsError: names the file and both sizes.
    """
    stored = sum(tensor.numel() for tensor in tensors.values())
    most, counted = 2 * stored + SPARE, 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal counted
        counted += 0 if tensor is None else tensor.numel()
        if counted > most:
            raise WeightsError(
                f"{file}: its network has more than {counted:,} elements, {type(module).__name__}.{name} of shape "
                f"{list(tensor.shape)} among them, but the file has {stored:,}. "  # type: ignore[union-attr]
                "It is damaged or malicious."
            )

    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
