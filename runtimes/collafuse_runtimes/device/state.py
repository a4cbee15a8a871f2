"""The state of this device at one moment: what a figure means nothing without.

Everything is read from files that the kernel and JetPack put there, without root. What is missing is unknown, None:
containers hide some of it, and an engine or a sensor that is switched off refuses to be read.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from collafuse_runtimes.device.cgroups import NO_LIMIT, CgroupLimits, read_limits
from collafuse_runtimes.device.machine import Machine, read_machine, text_of
from collafuse_runtimes.device.versions import git_commit, installed_packages

JETPACKS = {
    "R36.3.0": "6.0",
    "R36.4.0": "6.1",
    "R36.4.3": "6.2",
    "R36.4.4": "6.2.1",
    "R38.2.0": "7.0",
    "R38.2.1": "7.0",
    "R38.4.0": "7.1",
}
"""JetPack of a Jetson Linux release, from NVIDIA's release pages."""
CORES = {
    ("0x41", "0xd42"): "Arm Cortex-A78AE",
    ("0x41", "0xd83"): "Arm Neoverse-V3AE",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}
"""(implementer, part) of the cores of Jetson Orin, Thor and Xavier, from Linux' arch/arm64/include/asm/cputype.h."""
GPU_CLOCKS = re.compile("gpu|ga10b|gv11b")
"""Names in /sys/class/devfreq: 17000000.gpu (Orin; .ga10b and .gv11b on JetPack 5), gpu-gpc-0 and gpu-nvd-0 (Thor)."""
Number = TypeVar("Number", int, float)
OFF_C = -200.0
"""Below this a temperature stands for "switched off": drivers say -256 or -274."""


@dataclass(frozen=True)
class Clock:
    """One clock domain; MHz, None where it does not say.

    Attributes:
        name: as the kernel names it, e.g. "policy0" or "17000000.gpu".
        governor: what chooses the frequency.
        min_mhz, max_mhz: the limits now in force.
        cur_mhz: the frequency now.
    """

    name: str
    governor: str | None
    min_mhz: float | None
    max_mhz: float | None
    cur_mhz: float | None


@dataclass(frozen=True)
class DeviceState:
    """What can differ between two runs of the same program; None where the device does not say.

    Attributes:
        machine: board, GPU, driver.
        power_mode: nvpmodel's, name and number, e.g. "MAXN_SUPER (2)".
        jetpack: version, of the package where it is installed, else by the Jetson Linux release.
        cpu: model of the first core.
        cpus_online: how many are switched on.
        cpus_allowed: numbers of those this process may run on.
        cgroup_limits: CPU quota and memory limit of its control group, as containers and systemd set them.
        cpu_clocks: one a frequency policy; cores of one policy share a clock.
        gpu_clocks: of an integrated GPU.
        temperatures_c: thermal zone to degrees Celsius; zones that are switched off are missing.
        throttle_counts: since boot, by counter: a Jetson's over-current events ("soctherm_oc/oc3_event_cnt"), or the
            thermal throttling of an Intel CPU ("cpu/core_throttle_count"), the sum over its CPUs.
        memory_total_mb, memory_available_mb: 10^6 bytes.
        load_average: runnable processes over 1, 5 and 15 minutes.
        in_container: False only where systemd started this system and knows of no container.
        packages: versions of those installed.
        git_commit: of the source checkout this runs from.
    """

    machine: Machine
    power_mode: str | None
    jetpack: str | None
    cpu: str | None
    cpus_online: int | None
    cpus_allowed: tuple[int, ...] | None
    cgroup_limits: CgroupLimits
    cpu_clocks: tuple[Clock, ...] | None
    gpu_clocks: tuple[Clock, ...] | None
    temperatures_c: dict[str, float] | None
    throttle_counts: dict[str, int] | None
    memory_total_mb: float | None
    memory_available_mb: float | None
    load_average: tuple[float, float, float] | None
    in_container: bool | None
    packages: dict[str, str]
    git_commit: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def read_device_state(root: Path = Path("/")) -> DeviceState:
    """Read this device's state; ``root`` is where its /proc, /sys, /etc, /var and /run are."""
    machine = read_machine(root)
    memory = text_of(root / "proc/meminfo") or ""
    return DeviceState(
        machine=machine,
        power_mode=_power_mode(root),
        jetpack=_jetpack(root, machine.l4t),
        cpu=_cpu_model(text_of(root / "proc/cpuinfo") or ""),
        cpus_online=_cpus_online(text_of(root / "sys/devices/system/cpu/online") or ""),
        cpus_allowed=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None,
        cgroup_limits=read_limits(root),
        cpu_clocks=_cpu_clocks(root),
        gpu_clocks=_gpu_clocks(root),
        temperatures_c=_temperatures(root),
        throttle_counts=_throttle_counts(root),
        memory_total_mb=_megabytes(memory, "MemTotal"),
        memory_available_mb=_megabytes(memory, "MemAvailable"),
        load_average=_load_average(text_of(root / "proc/loadavg") or ""),
        in_container=_in_container(root),
        packages=installed_packages(),
        git_commit=git_commit(),
    )


def _power_mode(root: Path) -> str | None:
    """nvpmodel keeps "pmode:0002", and its modes as "< POWER_MODEL ID=2 NAME=MAXN_SUPER >"."""
    found = re.search(r"pmode:(\d{1,6})", text_of(root / "var/lib/nvpmodel/status") or "")
    if found is None:
        return None
    number = int(found[1])
    modes = text_of(root / "etc/nvpmodel.conf") or ""
    name = re.search(rf"^<\s*POWER_MODEL\s+ID={number}\s+NAME=([^\s>]+)", modes, re.MULTILINE)
    return f"{name[1]} ({number})" if name else f"mode {number}"


def _jetpack(root: Path, l4t: str | None) -> str | None:
    """ "6.2" for the installed package nvidia-jetpack 6.2+b77."""
    packages = (text_of(root / "var/lib/dpkg/status") or "").split("\n\n") if l4t else []
    for package in packages:
        if package.startswith("Package: nvidia-jetpack\n") and "\nStatus: install ok installed\n" in package:
            found = re.search(r"^Version: ([\d.]+)", package, re.MULTILINE)
            return found[1] if found else None
    return JETPACKS.get(l4t or "")


def _cpu_model(cpuinfo: str) -> str | None:
    """Arm cores by number: what some Jetson kernels write as their "model name" is no more than the architecture."""

    def first(name: str) -> str | None:
        found = re.search(rf"^{name}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        return found[1].strip() if found else None

    implementer, part = first("CPU implementer"), first("CPU part")
    if implementer is None or part is None:
        return first("model name")
    return CORES.get((implementer, part), f"Arm core, implementer {implementer}, part {part}")


def _cpus_online(ranges: str) -> int | None:
    """ "0-3,6" -> 5."""
    found = [re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part) for part in ranges.split(",")]
    return sum(len(range(int(part[1]), int(part[2] or part[1]) + 1)) for part in found if part) or None


def _cpu_clocks(root: Path) -> tuple[Clock, ...] | None:
    policies = sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*"), key=lambda path: int(path.name[6:]))
    return tuple(_clock(path, "scaling_", kilo=1) for path in policies) or None


def _gpu_clocks(root: Path) -> tuple[Clock, ...] | None:
    devices = [path for path in sorted(root.glob("sys/class/devfreq/*")) if GPU_CLOCKS.search(path.name)]
    return tuple(_clock(path, "", kilo=1000) for path in devices) or None


def _clock(folder: Path, prefix: str, kilo: int) -> Clock:
    """cpufreq counts in kHz, devfreq in Hz."""

    def mhz(name: str) -> float | None:
        number = _integer(folder / f"{prefix}{name}_freq")
        return None if number is None else number / kilo / 1000

    governor = text_of(folder / f"{prefix}governor")
    return Clock(folder.name, governor, mhz("min"), mhz("max"), mhz("cur"))


def _temperatures(root: Path) -> dict[str, float] | None:
    found: dict[str, float] = {}
    zones = root.glob("sys/class/thermal/thermal_zone*")
    for zone in sorted(zones, key=lambda path: int(path.name.removeprefix("thermal_zone"))):
        name, millidegrees = text_of(zone / "type"), _integer(zone / "temp")
        if name is not None and millidegrees is not None and millidegrees / 1000 > OFF_C:
            found[f"{name} {zone.name}" if name in found else name] = millidegrees / 1000
    return found or None


def _throttle_counts(root: Path) -> dict[str, int] | None:
    found: dict[str, int] = {}
    for sensor in root.glob("sys/class/hwmon/hwmon*"):
        if text_of(sensor / "name") == "soctherm_oc":
            counters = {path.name: _integer(path) for path in sorted(sensor.glob("oc*_event_cnt"))}
            found |= {f"soctherm_oc/{event}": count for event, count in counters.items() if count is not None}
    for name in ("core_throttle_count", "package_throttle_count"):
        paths = root.glob(f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{name}")
        counts = [count for count in map(_integer, paths) if count is not None]
        found |= {f"cpu/{name}": sum(counts)} if counts else {}
    return found or None


def _integer(path: Path) -> int | None:
    text = text_of(path) or ""
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else None


def _megabytes(meminfo: str, name: str) -> float | None:
    found = re.search(rf"^{name}:\s+(\d{{1,15}}) kB$", meminfo, re.MULTILINE)
    return round(int(found[1]) * 1024 / 1e6, 1) if found else None


def _load_average(loadavg: str) -> tuple[float, float, float] | None:
    found = re.match(r"(\d{1,9}\.\d+) (\d{1,9}\.\d+) (\d{1,9}\.\d+) ", loadavg)
    return (float(found[1]), float(found[2]), float(found[3])) if found else None


def _in_container(root: Path) -> bool | None:
    """Docker and Podman leave a file at the top; systemd notes the container it was started in."""
    if any((root / name).exists() for name in (".dockerenv", "run/.containerenv", "run/systemd/container")):
        return True
    return False if (root / "run/systemd/system").exists() else None


def describe_state(state: DeviceState) -> dict[str, str]:
    """Line's name to text, for people; all that is unknown stands together under "unknown"."""
    facts = _facts(state)
    lines = {line: "; ".join(text for at, _, text in facts if at == line and text) for line, _, _ in facts}
    lines["unknown"] = ", ".join(name for _, name, text in facts if not text)
    return {line: text for line, text in lines.items() if text}


def _facts(state: DeviceState) -> list[tuple[str, str, str | None]]:
    """(line it belongs to, what it is, text)."""

    def shown(value: object, text: str = "{}") -> str | None:
        return text.format(value) if value else None

    container = {True: "in a container", False: "no container", None: None}[state.in_container]
    machine, heat, counts = state.machine, state.temperatures_c or {}, state.throttle_counts or {}
    return [
        ("machine", "system", f"{machine.system} on {machine.architecture}, Python {machine.python}"),
        ("machine", "whether in a container", container),
        ("board", "board", machine.board),
        ("board", "Jetson Linux", shown(machine.l4t, "Jetson Linux {}")),
        ("board", "JetPack", shown(state.jetpack, "JetPack {}")),
        ("board", "power mode", shown(state.power_mode, "power mode {}")),
        ("CPU", "CPU model", state.cpu),
        ("CPU", "CPUs online", shown(state.cpus_online, "{} online")),
        ("CPU", "CPUs of this process", shown(len(state.cpus_allowed or ()), "{} for this process")),
        ("CPU", "CPU quota", _quota_text(state.cgroup_limits)),
        ("CPU", "CPU clocks", _clock_text(state.cpu_clocks)),
        ("GPU", "GPU", ", ".join(machine.gpus or ())),
        ("GPU", "NVIDIA driver", shown(machine.driver, "NVIDIA driver {}")),
        ("GPU", "GPU clocks", ", ".join(f"{c.name} {_clock_text((c,))}" for c in state.gpu_clocks or ())),
        ("heat", "temperatures", ", ".join(f"{zone} {celsius:.1f} C" for zone, celsius in heat.items())),
        ("throttle", "throttle counters", ", ".join(f"{name} {count}" for name, count in counts.items())),
        ("memory", "memory", shown(state.memory_total_mb, "{:.0f} MB")),
        ("memory", "available memory", shown(state.memory_available_mb, "{:.0f} MB available")),
        ("memory", "memory limit", _memory_limit_text(state.cgroup_limits)),
        ("memory", "load", shown(" ".join(f"{load:.2f}" for load in state.load_average or ()), "load {}")),
        ("packages", "packages", ", ".join(f"{name} {number}" for name, number in state.packages.items())),
        ("source", "git commit", state.git_commit),
    ]


def changes(before: DeviceState, after: DeviceState) -> list[str]:
    """What a run met or did, in lines for people: nothing about what stayed or is unknown on both sides.

    Temperatures are always told; throttle counters where they rose.
    """
    pairs = {
        "power mode": (before.power_mode, after.power_mode),
        "CPUs online": (before.cpus_online, after.cpus_online),
        "CPU quota": (_quota_text(before.cgroup_limits), _quota_text(after.cgroup_limits)),
        "memory limit": (_memory_limit_text(before.cgroup_limits), _memory_limit_text(after.cgroup_limits)),
        "CPU clocks": (_clock_text(before.cpu_clocks), _clock_text(after.cpu_clocks)),
    }
    gpus = [{clock.name: _clock_text((clock,)) for clock in state.gpu_clocks or ()} for state in (before, after)]
    pairs |= {f"GPU clock {name}": (gpus[0].get(name), gpus[1].get(name)) for name in gpus[0] | gpus[1]}
    lines = [f"{name}: {a or 'unknown'} -> {b or 'unknown'}" for name, (a, b) in pairs.items() if a != b]
    counts = _both(before.throttle_counts, after.throttle_counts)
    lines += [f"throttled: {name} {a} -> {b}" for name, (a, b) in counts.items() if b > a]
    heat = _both(before.temperatures_c, after.temperatures_c)
    moved = ", ".join(f"{zone} {a:.1f} -> {b:.1f} C" for zone, (a, b) in heat.items())
    return [*lines, f"temperatures: {moved}"] if moved else lines


def _both(before: dict[str, Number] | None, after: dict[str, Number] | None) -> dict[str, tuple[Number, Number]]:
    """What was read both times."""
    first, second = before or {}, after or {}
    return {name: (value, second[name]) for name, value in first.items() if name in second}


def _quota_text(limits: CgroupLimits) -> str | None:
    """ "quota of 0.5 CPUs"; None where it is unknown whether there is one."""
    if limits.cpu_quota is not None:
        return f"quota of {limits.cpu_quota:g} CPUs"
    return "no quota" if limits.reasons["cpu_quota"] == NO_LIMIT else None


def _memory_limit_text(limits: CgroupLimits) -> str | None:
    """ "limited to 512 MB, slowed down beyond 400 MB"; None where it is unknown whether there is a limit."""
    most, high = limits.memory_limit_mb, limits.memory_high_mb
    if most is None and high is None:
        return "no limit" if limits.reasons["memory_limit_mb"] == NO_LIMIT else None
    parts = {"limited to": most, "slowed down beyond": high}
    return ", ".join(f"{text} {megabytes:g} MB" for text, megabytes in parts.items() if megabytes is not None)


def _clock_text(clocks: Sequence[Clock] | None) -> str | None:
    """ "schedutil 730 to 1728 MHz, now 1190 to 1728" over several domains; None for none."""
    if not clocks:
        return None
    limits = dict.fromkeys(f"{c.governor or 'governor unknown'} {_span(c.min_mhz, c.max_mhz)}" for c in clocks)
    now = [clock.cur_mhz for clock in clocks if clock.cur_mhz is not None]
    return f"{' and '.join(limits)} MHz, now {_span(min(now, default=None), max(now, default=None))}"


def _span(low: float | None, high: float | None) -> str:
    """ "730 to 1728", or one number where both are the same."""
    return " to ".join(dict.fromkeys("unknown" if mhz is None else f"{mhz:.0f}" for mhz in (low, high)))
