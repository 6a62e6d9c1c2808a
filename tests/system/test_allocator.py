"""Freed memory is reused by the next step and released at the end."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from graft.system.device import Device
from graft.tasks import fit

PROBE = """
import platform, resource, sys
import torch
from graft.system.allocator import reuse_freed_memory

if sys.argv[1:] == ["other"]:
    platform.libc_ver = lambda: ("", "")

def faults(size=100):
    '''Pages of the kernel's that ten tensors of `size` MiB, one after the other, take.'''
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(size, 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with reuse_freed_memory(False):
    outside = faults()
with reuse_freed_memory():
    faults()
    inside = faults()
    large = faults(300)
    resident = int(open("/proc/self/statm").read().split()[1])
freed = resident - int(open("/proc/self/statm").read().split()[1])
print(outside, inside, large, freed)
"""
MIB = 256
"""Pages of 4 KiB in a MiB."""


def probed(*words: str, **environment: str) -> list[int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROBE, *words]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


def small_pages(seen: list[int]) -> list[int]:
    """What was seen, where each of 1,000 MiB took its 256 pages of the kernel when nothing was kept."""
    if not 900 * MIB < seen[0] < 1100 * MIB:
        pytest.skip("this kernel gives other pages than those of 4 KiB")
    return seen


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the faults")
def test_a_step_reuses_the_pages_freed_by_the_previous_one() -> None:
    _, inside, large, freed = small_pages(probed())
    assert inside < 10 * MIB
    assert large > 2700 * MIB, "very large blocks are not kept"
    assert freed > 90 * MIB, "and at the end the memory is released"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the faults")
@pytest.mark.parametrize(
    ("words", "environment"),
    [((), {"MALLOC_ARENA_MAX": "4"}), ((), {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}), (("other",), {})],
)
def test_another_c_library_and_user_set_limits_are_not_changed(
    words: tuple[str, ...], environment: dict[str, str]
) -> None:
    outside, inside, *_ = small_pages(probed(*words, **environment))
    assert inside > outside * 0.9


def test_a_cpu_run_reuses_freed_memory_unless_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def noted(keep: bool) -> AbstractContextManager[None]:
        asked.append(keep)
        return nullcontext()

    monkeypatch.setattr(fit, "reuse_freed_memory", noted)
    monkeypatch.setattr(fit, "train_and_test", lambda *_: {})
    for accelerator, wanted in (("cpu", True), ("cpu", False), ("gpu", True)):
        config = SimpleNamespace(trainer=SimpleNamespace(keep_memory=wanted))
        fit.one_process(config, None, Device(accelerator, 1, "32-true"), None, Path())  # type: ignore[arg-type]
    assert asked == [True, False, False]
