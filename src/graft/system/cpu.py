"""Number of CPU cores that this process may use."""


def available_cores() -> int:
    """Number of cores within the affinity mask (set by Slurm, taskset, …) and the container's CPU quota; at least 1.

    LOKY_MAX_CPU_COUNT is another limit. A quota that cannot be read is ignored.
    """
    import os

    from joblib import cpu_count

    try:
        return int(cpu_count())
    except (OSError, ValueError):  # joblib 1.5–1.6 does not catch a malformed cgroup file
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
