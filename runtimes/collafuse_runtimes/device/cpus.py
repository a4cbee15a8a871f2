"""How many threads a computation should use where nobody says: no more than this process has CPUs to run them on."""

import math
import os
from pathlib import Path

from collafuse_runtimes.device.cgroups import cpu_quota


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may run on, or fewer where its control group's quota is smaller: half a CPU counts as one.

    Args:
        root: where /proc and the control groups lie.
    """
    quota = cpu_quota(root)
    return _allowed() if quota is None else min(_allowed(), max(math.ceil(quota), 1))


def threads_by_quota(root: Path = Path("/")) -> int | None:
    """``usable_cpus`` where a quota makes them fewer; None elsewhere: the library's own default is right.

    More threads than the quota pays for use it up early in each period, and then all wait for the next.
    """
    cpus = usable_cpus(root)
    return cpus if cpus < _allowed() else None


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
