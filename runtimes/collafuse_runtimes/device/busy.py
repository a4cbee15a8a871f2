"""Whether other work keeps this machine's CPUs busy now: then whatever is timed or trained takes longer."""

import os
import re
from pathlib import Path

from collafuse_runtimes.device.machine import text_of

STALLED_PERCENT = 20.0
"""Share of the last 10 s in which something waited for a CPU (Linux kernel documentation, accounting/psi.rst)."""


def busy_text(root: Path = Path("/"), cpus: int | None = None) -> str | None:
    """What keeps the machine busy, in words; None where it is quiet or does not say.

    Busy is one on which processes had to wait for a CPU in a fifth of the last 10 s, or whose load average over a
    minute is half its CPUs and at least one: a computation on all CPUs is as slow as its slowest thread.

    Args:
        root: where /proc lies.
        cpus: of the machine; default what the system says.
    """
    cpus = cpus or os.cpu_count() or 1
    stalled = re.match(r"some avg10=(\d+(?:\.\d+)?)", text_of(root / "proc/pressure/cpu") or "")
    load = re.match(r"\d+(?:\.\d+)?", text_of(root / "proc/loadavg") or "")
    reasons = []
    if stalled and float(stalled[1]) >= STALLED_PERCENT:
        reasons.append(f"processes waited for a CPU in {float(stalled[1]):.0f} % of the last 10 s")
    if load and float(load[0]) >= max(1.0, cpus / 2):
        reasons.append(f"load average {float(load[0]):.1f} on {cpus} CPU{'s' * (cpus > 1)}")
    return ", ".join(reasons) or None
