"""Private APIs of Python, torch, torchvision, TensorBoard and Optuna, each in one function with the reason for its use.

`tests/system/test_compat.py` fails if a new version changes one of them. No library is imported before a function is
called; Lightning's private APIs are in `graft.learning.compat`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial
    from torch import Tensor


def end_process(code: object) -> NoReturn:
    """End the process as `sys.exit(code)` does, but leave what it holds to the operating system.

    Threads are waited for, exit handlers run and output is flushed, by private functions of Python 3.11–3.13. To unload
    torch and CUDA's libraries, `sys.exit` takes two seconds.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(code or 0)


def cpu_has_bf16_units() -> bool:
    """Whether the CPU multiplies matrices in bfloat16 in hardware (AVX512-BF16 or AMX).

    Private in torch 2.9; later versions have the public `torch.cpu.get_capabilities`, which is used where it exists.
    """
    import torch

    if public := getattr(torch.cpu, "get_capabilities", None):
        found: Mapping[str, object] = public()
        return bool(found.get("avx512_bf16") or found.get("amx_tile"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def lerp_all_(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move each tensor towards its end by `weight`, in place, in one kernel for all.

    torch 2.9–2.15. The public `Tensor.lerp_` starts a kernel for each tensor.
    """
    import torch

    torch._foreach_lerp_(tensors, ends, weight)


def copy_all_(tensors: list[Tensor], sources: list[Tensor]) -> None:
    """Copy each source into its tensor, in place, in one kernel for all.

    torch 2.9–2.15. The public `Tensor.copy_` starts a kernel for each tensor.
    """
    import torch

    torch._foreach_copy_(tensors, sources)


def tree_leaves(tree: Any) -> list[Any]:
    """The leaves of nested tuples, lists, dictionaries and registered output classes.

    torch 2.9–2.15. `torch.utils._pytree` knows the output classes of torchvision and is not public.
    """
    from torch.utils import _pytree

    return list(_pytree.tree_leaves(tree))


def augmentation_space(policy: Any) -> Mapping[str, tuple[Callable[[int, int, int], Tensor | None], bool]]:
    """Operation -> (magnitudes by number of bins, height and width; whether the sign is random) of an automatic
    augmentation of torchvision.

    torchvision 0.24–0.29. The public transforms draw one operation per call from torch's global generator.
    """
    space: Mapping[str, tuple[Callable[[int, int, int], Tensor | None], bool]] = policy._AUGMENTATION_SPACE
    return space


def auto_augment_pairs(policy: Any) -> Sequence[Any]:
    """The pairs of (operation, probability, magnitude) of torchvision's AutoAugment.

    torchvision 0.24–0.29. As `augmentation_space`.
    """
    pairs: Sequence[Any] = policy._policies
    return pairs


def add_summary(writer: Any, summary: Any, step: int) -> None:
    """Write a protobuf summary with a `torch.utils.tensorboard.SummaryWriter`.

    torch 2.9–2.15. `add_image` encodes every image as PNG, and `add_hparams` opens a second event file; the public
    attribute `file_writer` is None after `close`.
    """
    writer._get_file_writer().add_summary(summary, step)


def open_trial(study: Study, number: int) -> Trial:
    """The running trial `number` of a study, for reporting from another process than the one that asked for it.

    Optuna 5. `Study.ask` creates new trials only, and `Trial` takes the storage's number, which is private.
    """
    from optuna.trial import Trial

    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
