"""A pretended GPU, for tests of what a GPU asks of Graft on machines without one.

    python tests/pretend_gpu.py SCRIPT ARGUMENTS        or -m MODULE ARGUMENTS

runs a program with `torch.cuda` answering as if there were one GPU. A tensor that is moved to it says so and is a
stranger to those of the CPU: mixing the two, reading values where `torch.cuda.set_sync_debug_mode("error")` forbids to
wait, and converting it to NumPy are the errors that a GPU gives. It computes on the CPU, so that results have values.
What it does not show: kernels and their rounding (autocast has no effect), memory, streams, compiled code, speed, and
anything of processes that the program starts with a new interpreter.
"""

import contextlib
import functools
import os
import runpy
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
GPU = torch.device("cuda:0")
BACKEND = "pretend"
"""The device as which PyTorch's C++ code knows these tensors: about "cuda" it would ask the driver."""

MIXING = {
    aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default, aten.index.Tensor,
    aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
}  # fmt: skip
"""Operations that accept tensors of the CPU next to those of a GPU."""

WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default, aten.bincount.default,
    aten.masked_select.default, aten.equal.default,
}  # fmt: skip
"""Operations that wait for the GPU to know a value, or the size of their result."""

BYTES = 16 * 2**30


class OnGpu(Tensor):
    """A tensor on the pretended GPU; `held`, on the CPU, has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=torch.device(BACKEND, 0),
        )  # fmt: skip
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:  # type: ignore[override]
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self.held!r} on the pretended GPU"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: Tensor = OnGpu(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


class _Creation(TorchDispatchMode):
    """Lets operations without a tensor of the GPU make one, or move one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        return _run(func, args, kwargs) if _is_gpu(kwargs.get("device")) else func(*args, **kwargs)


class _Waiting:
    """The mode of `torch.cuda.set_sync_debug_mode`."""

    mode: Any = 0

    def check(self, operation: object) -> None:
        if self.mode not in (0, "default"):
            raise RuntimeError(f"called a synchronizing CUDA operation: {operation}")


waiting = _Waiting()


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", BACKEND)


def _waits(func: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> bool:
    """Whether the CPU waits for the GPU in this operation."""
    if func in (aten._to_copy.default, aten.copy_.default):
        devices = {isinstance(tensor, OnGpu) for tensor in given}
        if kwargs.get("device") is not None:
            devices.add(_is_gpu(kwargs["device"]))
        return len(devices) == 2 and not (kwargs.get("non_blocking") or args[2:3] == (True,))
    by_mask = func is aten.index.Tensor and any(tensor.dtype == torch.bool for tensor in given[1:])
    return (func in WAITING or by_mask) and isinstance(given[0], OnGpu)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values of the GPU's tensors; the result is on the GPU unless it moves them away."""
    device = kwargs.get("device")
    given: list[Tensor] = []
    tree_map_only(Tensor, given.append, (args, kwargs))
    on_gpu = [tensor for tensor in given if isinstance(tensor, OnGpu)]
    if on_gpu and func not in MIXING and any(tensor.dim() for tensor in given if not isinstance(tensor, OnGpu)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func}")
    if _waits(func, args, kwargs, given):
        waiting.check(func)
    if _is_gpu(device):
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    held_args, held_kwargs = tree_map_only(OnGpu, lambda tensor: tensor.held, (args, kwargs))
    results = func(*held_args, **held_kwargs)
    if device is not None and not _is_gpu(device):
        return results
    known = {id(tensor.held): tensor for tensor in on_gpu} | {id(tensor): tensor for tensor in given}
    return tree_map_only(Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else OnGpu(tensor), results)


def _made_on_the_cpu_first(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and the like, which would move their result in C++."""

    @functools.wraps(make)
    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, OnGpu):
            return data.to(*filter(None, [device, kwargs.get("dtype")]))
        return make(data, *args, **kwargs) if device is None else make(data, *args, **kwargs).to(device)

    return made


def _swap(one: Tensor, other: Tensor) -> None:
    """Exchange two tensors, even if a finished graph refers to one: so does `.data =`, which wrappers do not follow."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)


def _without_gradients(mode: bool = True) -> Any:
    """Stands for `torch.inference_mode`, whose tensors cannot be wrapped."""
    return torch.no_grad() if mode else contextlib.nullcontext()


def install() -> None:
    """Give this process the pretended GPU, for good."""
    from graft.system import gpu

    gpu.require_gpu = lambda accelerator: None
    _setup_privateuseone_for_python_backend(BACKEND)
    properties = SimpleNamespace(name="a pretended GPU", total_memory=BYTES, major=9, minor=0, multi_processor_count=1)
    answers = {
        "is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 1, "current_device": 0,
        "get_device_name": properties.name, "get_device_properties": properties, "get_device_capability": (9, 0),
        "mem_get_info": (BYTES, BYTES), "get_per_process_memory_fraction": 1.0, "memory_allocated": 0,
        "max_memory_allocated": 0, "memory_reserved": 0, "max_memory_reserved": 0, "get_rng_state_all": [],
        **dict.fromkeys(("_lazy_init", "set_device", "reset_peak_memory_stats", "empty_cache", "synchronize")),
        **dict.fromkeys(("manual_seed", "manual_seed_all", "set_rng_state_all")),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    torch.cuda.get_sync_debug_mode = lambda: waiting.mode
    torch.cuda.set_sync_debug_mode = functools.partial(setattr, waiting, "mode")
    for name in ("tensor", "as_tensor", "asarray"):
        setattr(torch, name, _made_on_the_cpu_first(getattr(torch, name)))
    to = Tensor.to

    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # "cuda" is the current GPU, which C++ would ask the driver for
        return to(self, *(GPU if isinstance(a, torch.device | str) and str(a) == "cuda" else a for a in args), **kwargs)

    Tensor.to = moved  # type: ignore[method-assign,assignment]
    Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign,assignment]
    torch.inference_mode = _without_gradients  # type: ignore[misc,assignment]
    torch.utils.swap_tensors = _swap
    torch.__future__.set_swap_module_params_on_conversion(True)
    _Creation().__enter__()


if __name__ == "__main__":
    install()
    sys.argv[:] = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv[:] = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
