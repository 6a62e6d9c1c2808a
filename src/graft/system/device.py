"""What this machine can do, and what of it a run uses."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from graft.config.schema import TrainerConfig
from graft.errors import ConfigError, TrainingError
from graft.system.gpu import NO_GPU


@dataclass(frozen=True)
class Device:
    """Where a run computes: Lightning's `accelerator`, how many `devices`, and its `precision`."""

    accelerator: str
    devices: int
    precision: str

    @property
    def root(self) -> torch.device:
        """As torch names it."""
        return torch.device("cuda" if self.accelerator in ("gpu", "cuda") else self.accelerator)


def cpu_has_bf16_units() -> bool:
    """True where matrix products in bfloat16 are done in hardware (AVX512-BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_device(config: TrainerConfig) -> Device:
    """Resolve every "auto" of `config` (a TrainerConfig).

    Raises:
        ConfigError: a GPU is asked for and there is none; more devices than there are.
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
"""Steps from which on the seconds that cuDNN takes to try its algorithms are regained."""


def benchmark(trainer: TrainerConfig, steps: float) -> bool:
    """Whether cuDNN tries its algorithms in a run of `steps` steps, by a TrainerConfig: which one is fastest may differ
    from run to run."""
    if trainer.deterministic:
        return False
    return steps >= LONG_RUN if trainer.benchmark is None else bool(trainer.benchmark)


def compile_mode(compile: bool | str) -> str | None:
    """The mode of torch.compile that `trainer.compile` asks for."""
    return None if isinstance(compile, bool) else compile


@contextmanager
def telling_of_determinism() -> Iterator[None]:
    """Turn PyTorch's refusal of an operation under trainer.deterministic=true into a TrainingError with a way out."""
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise TrainingError(
            f"trainer.deterministic=true: PyTorch cannot compute {operation} the same way each time on this device.\n"
            "trainer.deterministic=warn does what it can and says what it cannot; another network may do without."
        ) from error


def as_trained(trainer: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[Device, bool]:
    """One device for a network that is no longer trained, and whether its convolutions lie channels-last.

    Args:
        trainer: as the network was trained (a TrainerConfig); empty where that is not known.
        wanted: accelerator, precision and channels_last; None: as it was trained, or the best there is where it was
            trained on a GPU and this machine has none.

    Raises:
        ConfigError: a GPU is wanted and there is none.
    """
    usual = {"accelerator": "auto", "precision": "auto", "channels_last": True}
    then = {key: trainer.get(key, value) for key, value in usual.items()}
    if then["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        then["accelerator"] = "auto"
    chosen = then | {key: value for key, value in wanted.items() if value is not None}
    device = choose_device(TrainerConfig(chosen["accelerator"], 1, precision=chosen["precision"]))
    return device, chosen["channels_last"]


def _precision(wanted: str, accelerator: str) -> str:
    if wanted != "auto":
        return wanted
    if accelerator in ("gpu", "cuda"):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if accelerator == "cpu" and cpu_has_bf16_units() else "32-true"
