"""Sending batches from worker processes to the main process, without files in /dev/shm."""

import io
import logging
import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import reduction
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from graft.errors import GraftError

log = logging.getLogger("graft")

ALIGNMENT = 64
"""Of the tensors in a block, in bytes."""


@dataclass
class Parcel:
    """A batch sent by a worker process, with its tensors in one anonymous block of memory.

    torch would put each tensor in a file in /dev/shm (64 MB in a container by default), in a background thread of the
    worker; if that is full, or no socket can be created in TMPDIR, the batch is lost and the loader waits forever. This
    block is limited only by memory; where it cannot be created, its bytes are sent through the pipe.

    Attributes:
        content: the pickled batch, with numbers in place of its tensors.
        tensors: (dtype, shape, strides, offset in bytes) of each tensor.
        size: of the block, in bytes.
        block: file descriptor of the block, or its bytes.
        fallback: why it is its bytes; empty otherwise.
    """

    content: bytes
    tensors: list[tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]]
    size: int
    block: Any
    fallback: str = ""

    def unpack(self, *, pinned: bool = False) -> Any:
        """The batch; with `pinned`, in page-locked memory."""
        if self.fallback:
            _warn_once(self.fallback)
            block = torch.frombuffer(self.block, dtype=torch.uint8)
        else:
            file = self.block.detach()
            try:
                block = torch.frombuffer(mmap.mmap(file, self.size), dtype=torch.uint8)
            finally:
                os.close(file)
        tensors = [_view(block, *layout) for layout in self.tensors]
        return _Unpickler(self.content, [tensor.pin_memory() for tensor in tensors] if pinned else tensors).load()

    def pin_memory(self) -> Any:
        """The batch in page-locked memory; called by DataLoader(pin_memory=True)."""
        return self.unpack(pinned=True)


def pack(batch: Any) -> Any:
    """A `Parcel` with `batch` in a worker process; an error, or a batch in the main process, is returned unchanged."""
    if get_worker_info() is None or isinstance(batch, GraftError) or not hasattr(os, "memfd_create"):
        return batch
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(batch)
    tensors, size = [], 0
    for tensor in pickler.tensors:
        strides = torch.empty_like(tensor, device="meta").stride()  # those of `tensor`, but dense
        tensors.append((tensor.dtype, tuple(tensor.shape), strides, size))
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    size = max(size, ALIGNMENT)
    block, fallback = _block(pickler.tensors, tensors, size)
    return Parcel(file.getvalue(), tensors, size, block, fallback)


@cache
def _warn_once(reason: str) -> None:
    log.warning("note  worker processes send batches through a pipe, which is slower: %s", reason)


_unavailable = ""
"""Why this process cannot send file descriptors; tried only once, because each attempt may leave one open."""


def _block(tensors: Sequence[Tensor], layout: Sequence[tuple[Any, ...]], size: int) -> tuple[Any, str]:
    """(block with the tensors, "") or (its bytes, reason)."""
    global _unavailable
    if not _unavailable:
        try:
            file = os.memfd_create("graft-batch")
            try:
                os.ftruncate(file, size)
                _fill(mmap.mmap(file, size), tensors, layout)
                return reduction.DupFd(file), ""
            finally:
                os.close(file)
        except OSError as error:
            _unavailable = f"{error.strerror or error} (temporary files are in {tempfile.gettempdir()})"
    content = bytearray(size)
    _fill(content, tensors, layout)
    return content, _unavailable


def _fill(memory: Any, tensors: Sequence[Tensor], layout: Sequence[tuple[Any, ...]]) -> None:
    block = torch.frombuffer(memory, dtype=torch.uint8)
    for tensor, each in zip(tensors, layout, strict=True):
        _view(block, *each).copy_(tensor)


def _view(block: Tensor, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Tensor:
    return block[offset:].view(dtype).as_strided(shape, strides, offset // dtype.itemsize)


class _Pickler(pickle.Pickler):
    """Pickles a batch without its tensors, which it collects."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Restores a batch with its tensors."""

    def __init__(self, content: bytes, tensors: Sequence[Tensor]) -> None:
        super().__init__(io.BytesIO(content))
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]
