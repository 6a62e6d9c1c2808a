"""Choice of device, precision and cuDNN settings for a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from graft.errors import ConfigError, TrainingError
from graft.system.compat import cpu_has_bf16_units
from graft.system.gpu import NO_GPU


class DeviceOptions(Protocol):
    """Options of the configuration group `trainer` that choose the device."""

    @property
    def accelerator(self) -> str: ...
    @property
    def devices(self) -> Any: ...
    @property
    def strategy(self) -> str: ...
    @property
    def precision(self) -> str: ...


class CudnnOptions(Protocol):
    """Options of the configuration group `trainer` that choose the algorithms of cuDNN."""

    @property
    def deterministic(self) -> Any: ...
    @property
    def benchmark(self) -> Any: ...


@dataclass(frozen=True)
class Device:
    """Device of a run: Lightning's `accelerator`, the number of `devices`, and the `precision`."""

    accelerator: str
    devices: int
    precision: str

    @property
    def root(self) -> torch.device:
        """The device as a `torch.device`."""
        return torch.device("cuda" if self.accelerator in ("gpu", "cuda") else self.accelerator)


def choose_device(config: DeviceOptions) -> Device:
    """Choose accelerator, number of devices and precision; resolves every "auto".

    Raises:
        ConfigError: a GPU is requested and there is none; or more devices than there are.
    """
    found = torch.cuda.device_count()
    accelerator = config.accelerator
    if accelerator in ("gpu", "cuda") and not found:
        raise ConfigError(NO_GPU)
    if accelerator == "auto":
        accelerator = "gpu" if found else "mps" if torch.backends.mps.is_available() else "cpu"
    devices = config.devices
    if devices == "auto":
        devices = max(1, found) if config.strategy == "ddp" and accelerator != "cpu" else 1
    if accelerator in ("gpu", "cuda") and int(devices) > found:
        raise ConfigError(
            f"trainer.devices={devices}: this machine has {found} GPU{'s' if found != 1 else ''}."
            + (" Ask Slurm with --gpus-per-node, so that each task sees all." if config.strategy == "ddp_slurm" else "")
        )
    return Device(accelerator, int(devices), _precision(config.precision, accelerator))


LONG_RUN = 2000
"""Steps above which benchmarking cuDNN's algorithms saves more time than it takes."""


def benchmark(trainer: CudnnOptions, steps: float) -> bool:
    """Whether cuDNN benchmarks its algorithms in a run of `steps` steps; its choice may differ between runs."""
    if trainer.deterministic:
        return False
    return steps >= LONG_RUN if trainer.benchmark is None else bool(trainer.benchmark)


def compile_mode(compile: bool | str) -> str | None:
    """The mode of torch.compile that `trainer.compile` asks for."""
    return None if isinstance(compile, bool) else compile


@contextmanager
def explaining_nondeterminism() -> Iterator[None]:
    """Turn PyTorch's error about an operation that is not deterministic into a TrainingError with a way out."""
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise TrainingError(
            f"trainer.deterministic=true: PyTorch has no deterministic {operation} on this device.\n"
            "trainer.deterministic=warn warns instead; another network may not need it."
        ) from error


def inference_device(trainer: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[Device, bool]:
    """Device for inference, and whether the network uses the channels-last memory format.

    Args:
        trainer: options of the group `trainer` in the training run; empty if unknown.
        overrides: accelerator, precision and channels_last; None: as in training, or automatic if the network was
            trained on a GPU and this machine has none.

    Raises:
        ConfigError: a GPU is requested and there is none.
    """
    defaults = {"accelerator": "auto", "precision": "auto", "channels_last": True}
    recorded = {key: trainer.get(key, value) for key, value in defaults.items()}
    if recorded["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        recorded["accelerator"] = "auto"
    chosen = recorded | {key: value for key, value in overrides.items() if value is not None}
    device = choose_device(_Options(chosen["accelerator"], chosen["precision"]))
    return device, chosen["channels_last"]


@dataclass(frozen=True)
class _Options:
    accelerator: str
    precision: str
    devices: int = 1
    strategy: str = "auto"


def _precision(precision: str, accelerator: str) -> str:
    if precision != "auto":
        return precision
    if accelerator in ("gpu", "cuda"):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if accelerator == "cpu" and cpu_has_bf16_units() else "32-true"
