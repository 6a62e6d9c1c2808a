"""How many CPU cores this process may really use."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = CGROUP) -> int:
    """Cores granted to this process by its affinity mask (as Slurm sets it) and container; at least 1."""
    granted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(granted, _cpu_quota(cgroup))))


def _cpu_quota(cgroup: Path) -> float:
    """Cores' worth of CPU time the container may spend, from cgroup v2 or v1; infinite without a limit."""
    version_1 = cgroup / "cpu"
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()[:2]
        else:
            quota, period = ((version_1 / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
