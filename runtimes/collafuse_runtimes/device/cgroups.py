"""What a control group allows this process: CPU time and memory, by cgroup v1 and v2 (Linux kernel documentation,
admin-guide/cgroup-v1/ and admin-guide/cgroup-v2.rst).

A limit holds for a group and everything below it, so the one in force is the least from the process's own group up to
the top. Containers and systemd set them (`docker run --cpus 0.5 --memory 512m`); affinity and /proc/meminfo show
neither.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collafuse_runtimes.device.machine import text_of

UNLIMITED = 1 << 60
"""v1 writes "no limit" as the largest multiple of its page size below 2^63; no memory is as large as this."""
NO_LIMIT, NO_FILE = "no limit is set", "the control group does not say"


@dataclass(frozen=True)
class Group:
    """The control group of this process for one controller.

    Attributes:
        version: 1 or 2.
        folders: of the group and of every group above it that can be seen, the own one first.
    """

    version: int
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class CgroupLimits:
    """Limits in force; None where there is none, and ``reasons`` says by field why.

    Attributes:
        cpu_quota: CPUs worth of time, e.g. 0.5.
        memory_limit_mb: more ends the process; 10^6 bytes.
        memory_high_mb: more slows it down (v2 alone); 10^6 bytes.
        memory_used_mb: of the process's own group, files that the kernel caches included; 10^6 bytes.
        reasons: field to why it is None.
    """

    cpu_quota: float | None
    memory_limit_mb: float | None
    memory_high_mb: float | None
    memory_used_mb: float | None
    reasons: dict[str, str]


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """Read them; ``root`` is where /proc and what is mounted lie."""
    cpu, memory = find_group(root, "cpu"), find_group(root, "memory")
    found = {
        "cpu_quota": cpu if isinstance(cpu, str) else _cpu_quota(cpu),
        "memory_limit_mb": _megabytes(memory, _least, "memory.limit_in_bytes", "memory.max"),
        "memory_high_mb": _megabytes(memory, _least, None, "memory.high"),
        "memory_used_mb": _megabytes(memory, _own, "memory.usage_in_bytes", "memory.current"),
    }
    numbers = {name: None if isinstance(value, str) else value for name, value in found.items()}
    return CgroupLimits(**numbers, reasons={name: value for name, value in found.items() if isinstance(value, str)})


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs worth of time that this process's control groups allow; None without a limit."""
    group = find_group(root, "cpu")
    found = group if isinstance(group, str) else _cpu_quota(group)
    return None if isinstance(found, str) else found


def find_group(root: Path, controller: str) -> Group | str:
    """The group of a controller, "cpu" or "memory", or why there is none.

    v1 wins where both are mounted: a controller that v1 took is not in v2.
    """
    own = _own_paths(text_of(root / "proc/self/cgroup") or "")
    mounts = _mounts(text_of(root / "proc/self/mountinfo") or "")
    for version, key in ((1, controller), (2, "")):
        if key in own and key in mounts:
            top, mounted = mounts[key]
            folders = _folders_up(root / top.lstrip("/"), _below(own[key], mounted))
            if version == 1 or any((folder / f"{controller}.stat").exists() for folder in folders):
                return Group(version, folders)
    return f"no control group for {controller} is to be seen here"


def _own_paths(text: str) -> dict[str, str]:
    """/proc/self/cgroup, lines "4:cpu,cpuacct:/docker/1f" and, of v2, "0::/user.slice" (key "")."""
    lines = [line.split(":", 2) for line in text.splitlines()]
    return {name: parts[2] for parts in lines if len(parts) == 3 for name in parts[1].split(",")}


def _mounts(text: str) -> dict[str, tuple[str, str]]:
    """/proc/self/mountinfo: controller ("" for v2) to (mount point, the group that is its top)."""
    found: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        before, _, after = (part.split() for part in line.partition(" - "))
        if len(before) < 5 or len(after) < 3 or after[0] not in ("cgroup", "cgroup2"):
            continue
        place = (_unescaped(before[4]), _unescaped(before[3]))
        for name in [""] if after[0] == "cgroup2" else after[2].split(","):
            found.setdefault(name, place)
    return found


def _unescaped(text: str) -> str:
    """mountinfo writes a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def _below(own: str, mounted: str) -> str:
    """The own group's path as seen from the mount; a container may see its own group as the top."""
    if mounted == "/":
        return own
    return own[len(mounted) :] if own == mounted or own.startswith(f"{mounted}/") else "/"


def _folders_up(top: Path, below: str) -> tuple[Path, ...]:
    """From the group's folder up to ``top``; a path that leads out of ``top`` or to nothing is another namespace's."""
    parts = [part for part in below.split("/") if part]
    if ".." in parts or not top.joinpath(*parts).is_dir():
        return (top,)
    return tuple(top.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _cpu_quota(group: Group) -> float | str:
    pairs = [_quota_and_period(folder, group.version) for folder in group.folders]
    quotas = [pair[0] / pair[1] for pair in pairs if pair is not None and pair[0] > 0 and pair[1] > 0]
    if quotas:
        return min(quotas)
    return NO_LIMIT if any(pairs) or group.version == 2 else NO_FILE


def _quota_and_period(folder: Path, version: int) -> tuple[int, int] | None:
    """Microseconds of CPU time a period; the quota is -1 without a limit."""
    if version == 1:
        texts = [text_of(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    else:
        texts = (text_of(folder / "cpu.max") or "").replace("max", "-1").split()
    numbers = [int(text) for text in texts if re.fullmatch(r"-1|\d{1,18}", text)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 == len(texts) else None


def _megabytes(
    group: Group | str, read: Callable[[Group, str], int | str], v1_file: str | None, v2_file: str
) -> float | str:
    if isinstance(group, str):
        return group
    name = v1_file if group.version == 1 else v2_file
    found = "cgroup v1 has no such limit" if name is None else read(group, name)
    return found if isinstance(found, str) else round(found / 1e6, 1)


def _least(group: Group, name: str) -> int | str:
    texts = [text_of(folder / name) or "" for folder in group.folders]
    limits = [int(text) for text in texts if re.fullmatch(r"\d{1,19}", text)]
    if limits and min(limits) < UNLIMITED:
        return min(limits)
    return NO_LIMIT if any(texts) or group.version == 2 else NO_FILE


def _own(group: Group, name: str) -> int | str:
    text = text_of(group.folders[0] / name) or ""
    return int(text) if re.fullmatch(r"\d{1,18}", text) else NO_FILE
