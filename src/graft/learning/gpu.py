"""Is there a GPU at all? Answered without importing torch, so that the mistake answers at once."""

import ctypes
import sys

from graft.errors import ConfigError

NO_GPU = (
    "trainer.accelerator=gpu: this machine has no GPU that PyTorch can use.\n"
    "Take the CPU with trainer.accelerator=cpu (graft train: trainer=cpu), or leave the choice to auto."
)


def require_gpu(accelerator: str) -> None:
    """Raise ConfigError when a GPU is asked for on a Linux machine without an NVIDIA or AMD driver."""
    if accelerator not in ("gpu", "cuda") or sys.platform != "linux":
        return
    for driver in ("libcuda.so.1", "libamdhip64.so"):
        try:
            ctypes.CDLL(driver)
        except OSError:
            continue
        return
    raise ConfigError(NO_GPU)
