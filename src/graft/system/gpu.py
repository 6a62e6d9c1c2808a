"""Detection of GPUs without importing torch, so that a mistake is reported at once."""

import ctypes
import os
import sys

from graft.errors import ConfigError

NO_GPU = (
    "trainer.accelerator=gpu: this machine has no GPU that PyTorch can use.\n"
    "Use trainer.accelerator=cpu (graft train: trainer=cpu) or trainer.accelerator=auto."
)


def require_gpu(accelerator: str) -> None:
    """Raise ConfigError if a GPU is requested on a Linux machine without an NVIDIA or AMD driver."""
    if accelerator not in ("gpu", "cuda") or sys.platform != "linux":
        return
    for driver in ("libcuda.so.1", "libamdhip64.so"):
        try:
            ctypes.CDLL(driver)
        except OSError:
            continue
        return
    raise ConfigError(NO_GPU)


def visible_gpus() -> list[str]:
    """GPUs in CUDA_VISIBLE_DEVICES, or without that variable "0", "1", … for each NVIDIA GPU of this machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    count = ctypes.c_uint(0)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return []
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return []
    return [str(number) for number in range(count.value)]
