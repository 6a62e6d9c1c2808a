"""CPU affinity and the container's CPU quota limit the number of cores."""

import builtins
import io
import os
from typing import Any

import pytest

from graft.system.cpu import available_cores


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files in /sys/fs/cgroup, by name; eight cores by affinity on a machine of sixteen."""
    files: dict[str, str] = {}
    root = "/sys/fs/cgroup/"
    opened, exists = builtins.open, os.path.exists

    def fake_open(path: Any, *args: Any, **options: Any) -> Any:
        name = str(path)
        return io.StringIO(files[name.removeprefix(root)]) if name.startswith(root) else opened(path, *args, **options)

    def fake_exists(path: Any) -> bool:
        return str(path).removeprefix(root) in files if str(path).startswith(root) else exists(path)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(builtins, "open", fake_open)
    monkeypatch.setattr(os.path, "exists", fake_exists)
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    return files


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "9000000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu.max": "some words"}, 8),
    ],
)
def test_the_quota_bounds_the_cores(cgroup: dict[str, str], files: dict[str, str], expected: int) -> None:
    cgroup |= files
    assert available_cores() == expected


def test_a_narrower_affinity_mask_bounds_the_cores(cgroup: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup["cpu.max"] = "400000 100000"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert available_cores() == 1
